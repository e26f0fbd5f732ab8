"""One way to ask for any method's layer."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Protocol

import torch

from normwise import methods
from normwise.errors import InputError
from normwise.functional import normalize
from normwise.methods import Method, method_named, parse_spec
from normwise.nn._axis import ChannelAxis, checked_axis
from normwise.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normwise.nn.groupnorm import AnyLayerNorm, GroupNorm
from normwise.nn.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normwise.nn.layernorm import LayerNorm, RMSNorm
from normwise.nn.norm import Norm
from normwise.nn.own import Build, Given, layers_by
from normwise.nn.relatives import (
    BatchInstanceNorm,
    BatchRenorm,
    FilterResponseNorm,
    GhostBatchNorm,
    MeanOnlyBatchNorm,
)
from normwise.nn.switchable import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d
from normwise.nn.token import Derf, DyT, L2Norm


class Identity(torch.nn.Identity):
    """Stands where a method normalizes no activations; padding becomes 0, as with every other layer."""

    def forward(self, input: torch.Tensor, *, mask: Any = None, lengths: Any = None) -> torch.Tensor:
        """Give the input."""
        if mask is None and lengths is None:
            return input
        return normalize(input, methods.NoNorm(), mask=mask, lengths=lengths)


class NormFactory(Protocol):
    """Builds a normalization layer for a number of channels: ``norm(64)``, or ``norm(64, dim=1)`` for other axes.

    ``norm(64, axis=-1)`` is for channels that come last, as in transformers.

    Further arguments go to the layer: networks that take a ``norm_layer`` pass ``eps``, ``device`` and ``dtype`` on.
    """

    def __call__(self, num_features: int, dim: int | None = None, **more: Any) -> torch.nn.Module:
        """Build a layer."""
        ...


# The methods whose layers have classes of their own: one for each number of spatial axes, or one for all. Any other
# method has :class:`Norm`.
_CLASSES: dict[type[Method], tuple[type[torch.nn.Module], ...]] = {
    methods.Batch: (BatchNorm1d, BatchNorm2d, BatchNorm3d),
    methods.Instance: (InstanceNorm1d, InstanceNorm2d, InstanceNorm3d),
    methods.Switchable: (SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d),
    methods.Group: (GroupNorm,),
    methods.Layer: (AnyLayerNorm,),
    methods.BatchRenorm: (BatchRenorm,),
    methods.GhostBatch: (GhostBatchNorm,),
    methods.MeanOnlyBatch: (MeanOnlyBatchNorm,),
    methods.BatchInstance: (BatchInstanceNorm,),
    methods.FilterResponse: (FilterResponseNorm,),
    methods.RMS: (RMSNorm,),
    methods.L2: (L2Norm,),
    methods.DyT: (DyT,),
    methods.Derf: (Derf,),
    methods.NoNorm: (Identity,),
    methods.WeightNorm: (Identity,),
}
# What normwise.parametrize takes for weight norm, which has no layer class.
_WEIGHT_OPTIONS = {"eps": None, "init": ("data",)}


def classes_of(method: Method) -> tuple[type[torch.nn.Module], ...]:
    """The classes of a method's layers: one for each number of spatial axes, or one for all."""
    return _CLASSES.get(type(method), (Norm,))


def norm_layer(method: Given, dim: int = 2, **options: Any) -> NormFactory:
    """Give a factory of one method's layers, all with a learned weight and bias per channel.

    ``"layer"``, ``"rms"``, ``"l2"``, ``"dyt"`` and ``"derf"`` find their C channels by the input's shape, at axis 1 or
    at the last axis, so that they go into transformers as into convolutional networks. Where both axes have the size
    C, a layer goes by what it, or for maps (N, C, H, W) others of this factory, met before; maps that still do not tell
    have their channels at axis 1, and for (N, C, L) it is an error that asks for ``axis``. ``"layer"`` is then
    ``GroupNorm(1, C)`` of maps and ``LayerNorm(C)`` of tokens, the others normalize each position by itself in either
    case. All other methods expect their channels at axis 1, or at ``axis=-1``.

    ``"none"`` and ``"weight"`` give identities: weight norm acts on the weights (:func:`normwise.weight_norm`). A
    method without a class of its own has :class:`normwise.nn.Norm`.

    Args:
        method: a key of ``METHODS``, which may bring its options along: ``"group(num_groups=4)"``; a method of
            :mod:`normwise.methods` or your own, such as ``Group(4)``; or what builds a layer for a number of channels,
            ``lambda channels: MyLayer(channels)``, which gets ``dim`` and other options if its signature takes them.
        dim: spatial axes of the inputs, 1, 2 or 3, unless a call says otherwise.
        **options: options of the method, or passed to the layers; ``axis=-1`` says that the channels come last,
            ``axis=1`` that they do not.

    Returns:
        ``norm(num_features, dim=None, **more) -> Module``.

    Raises:
        InputError: unknown method, a ``dim`` other than 1, 2 or 3, an ``axis`` other than 1 or -1, or a callable that
            builds no module.

    Example:
        >>> norm = norm_layer("group")
        >>> norm(64)
        GroupNorm(32, 64, eps=1e-05, affine=True, bias=True)
        >>> norm_layer(lambda channels: torch.nn.BatchNorm2d(channels))(8).num_features
        8
    """
    _check_dim(dim)
    default_dim = dim
    build = _builder(method, options)

    def norm(num_features: int, dim: int | None = None, **more: Any) -> torch.nn.Module:
        dim = default_dim if dim is None else dim
        _check_dim(dim)
        return build(num_features, dim, more)

    return norm


def _builder(method: Any, options: dict[str, Any]) -> Build:
    if isinstance(method, str):
        name, given = parse_spec(method)
        method, options = name, given | options
    elif not (isinstance(method, Method) or (isinstance(method, type) and issubclass(method, Method))):
        return layers_by(method, options)
    row = method_named(method)
    together: set[int] = set()  # where the layers that this builds have found their channels

    def build(num_features: int, dim: int, more: dict[str, Any]) -> torch.nn.Module:
        chosen, rest = row.taking(options | more)
        layer = _layer(chosen, num_features, dim, rest)
        if isinstance(layer, ChannelAxis) and layer.axis is None:
            layer._together = together
        return layer

    return build


def _layer(method: Method, num_features: int, dim: int, options: dict[str, Any]) -> torch.nn.Module:
    """The method's own class where that takes the method's options, or the one for any method."""
    axis = checked_axis(options.pop("axis", None))
    kinds = classes_of(method)
    kind = kinds[dim - 1] if len(kinds) > 1 else kinds[0]
    if kind is AnyLayerNorm and (axis is not None or method.per_token is not None):
        kind = LayerNorm if method.by_position(axis or 1) else GroupNorm if axis != -1 else Norm
    told = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
    told = {name: value for name, value in told.items() if value != type(method).__dataclass_fields__[name].default}
    if kind is Identity:
        return Identity()
    if kind in (LayerNorm, GroupNorm):
        told.pop("per_token", None)  # which has chosen the class
    takes = _arguments(kind).keys()
    elsewhere = axis == -1 and not issubclass(kind, ChannelAxis)
    if kind is Norm or elsewhere or not told.keys() <= takes:
        return Norm(method, num_features, axis=axis, **options)
    if "axis" in takes:
        options["axis"] = axis
    if kind in (LayerNorm, RMSNorm):
        affine = options.pop("affine", True)
        return kind(num_features, **{"eps": 1e-5, "elementwise_affine": affine} | told | options)
    if kind is GroupNorm:
        return GroupNorm(method.groups(num_features), num_features, **options)
    return kind(num_features, **{"affine": True} | told | options)


def check_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Read a method with options and see that there are such a method and such options.

    Args:
        text: the spec.

    Returns:
        Name and options.

    Raises:
        InputError: there is no such method or option, or an option cannot have that value.

    Example:
        >>> check_spec("group(groups=4)")
        Traceback (most recent call last):
        ...
        normwise.errors.InputError: group has no option 'groups': it takes num_groups, eps, affine, bias, ...
    """
    name, options = parse_spec(text)
    method = method_named(name)
    takes = _options_of(method)
    for option in options:
        if option not in takes:
            raise InputError(f"{name} has no option {option!r}: it takes {', '.join(takes) or 'none'}")
    if method.on_weights:
        for option, value in options.items():
            allowed = _WEIGHT_OPTIONS[option]
            if value not in (allowed or (value,)):
                raise InputError(f"{text}: {option} must be {' or '.join(map(str, allowed or ()))}, got {value!r}")
        return name, options
    groups = options.get("num_groups")
    # A width that any number of groups divides: what is wrong here is wrong for every width.
    width = 64 * groups if isinstance(groups, int) and groups > 0 else 64
    try:
        with torch.no_grad():
            shape = (2, 2, 2, width) if options.get("axis") == -1 else (2, width, 2, 2)
            norm_layer(name, **options)(width)(torch.zeros(shape))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{text}: {error}") from error
    return name, options


def _options_of(method: Method) -> list[str]:
    """What a method's layers can be told beside their width, place and type."""
    if method.on_weights:
        return list(_WEIGHT_OPTIONS)
    kind = classes_of(method)[-1]
    fields = [f.name for f in dataclasses.fields(method) if f.init]
    fixed = {"method", "num_features", "num_channels", "device", "dtype", "input", "mask", "lengths"}
    fixed |= {"num_groups"} - {*fields} | {"normalized_shape"}
    arguments = ["affine" if n == "elementwise_affine" else n for n in _arguments(kind) if n not in fixed]
    return list(dict.fromkeys([*arguments, *fields, *(() if kind is Identity else ["axis"])]))


def _arguments(kind: type) -> dict[str, None]:
    """The arguments of a class, those that it passes on included."""
    found: dict[str, None] = {}
    for base in kind.__mro__ if kind is not Identity else ():
        parameters = inspect.signature(base.__init__).parameters.values() if "__init__" in vars(base) else ()  # type: ignore[misc]
        found |= {p.name: None for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters) and parameters:
            break
    found.pop("self", None)
    return found


def _check_dim(dim: int) -> None:
    if dim not in (1, 2, 3):
        raise InputError(f"dim must be 1, 2 or 3 spatial axes, got {dim!r}")
