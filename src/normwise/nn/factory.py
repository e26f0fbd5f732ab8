"""One way to ask for any method's layer by name."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any, Protocol

import torch

from normwise.errors import InputError
from normwise.functional import normalize
from normwise.methods import METHODS, method_named
from normwise.nn._checks import came
from normwise.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normwise.nn.groupnorm import GroupNorm, groups_for
from normwise.nn.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normwise.nn.own import Given, own_layers
from normwise.nn.relatives import (
    BatchInstanceNorm,
    BatchRenorm,
    FilterResponseNorm,
    GhostBatchNorm,
    MeanOnlyBatchNorm,
)
from normwise.nn.switchable import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d

_BY_DIM: dict[str, dict[int, type[torch.nn.Module]]] = {
    "batch": {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d},
    "instance": {1: InstanceNorm1d, 2: InstanceNorm2d, 3: InstanceNorm3d},
    "switchable": {1: SwitchableNorm1d, 2: SwitchableNorm2d, 3: SwitchableNorm3d},
}
# One class for any number of spatial axes.
_ANY_DIM = {
    kind.method: kind
    for kind in (BatchRenorm, GhostBatchNorm, MeanOnlyBatchNorm, BatchInstanceNorm, FilterResponseNorm)
}


# What normwise.parametrize takes for "weight", which has no layer class.
_WEIGHT_OPTIONS = {"eps": None, "init": ("data",)}
_SPEC = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\)\s*)?")


class Identity(torch.nn.Identity):
    """Stands where a method normalizes no activations; padding becomes 0, as with every other layer."""

    def forward(self, input: torch.Tensor, *, mask: Any = None, lengths: Any = None) -> torch.Tensor:
        """Give the input."""
        if mask is None and lengths is None:
            return input
        return normalize(input, "none", mask=mask, lengths=lengths)


class NormFactory(Protocol):
    """Builds a normalization layer for a number of channels: ``norm(64)``, or ``norm(64, dim=1)`` for other axes.

    Further arguments go to the layer: networks that take a ``norm_layer`` pass ``eps``, ``device`` and ``dtype`` on.
    """

    def __call__(self, num_features: int, dim: int | None = None, **more: Any) -> torch.nn.Module:
        """Build a layer."""
        ...


def norm_layer(method: Given, dim: int = 2, **options: Any) -> NormFactory:
    """Give a factory of one method's layers, all with a learned weight and bias per channel.

    ``"layer"`` gives ``GroupNorm(1, C)``, the layer norm of a convolutional map. ``"none"`` and ``"weight"`` give
    identities: weight norm acts on the weights (:func:`normwise.weight_norm`).

    Args:
        method: a key of ``METHODS``, which may bring its options along: ``"group(num_groups=4)"``. Or one of your own:
            a :class:`normwise.methods.Method`, or what builds a layer, ``lambda channels: MyLayer(channels)``.
        dim: spatial axes of the inputs, 1, 2 or 3, unless a call says otherwise.
        **options: passed to the layers.

    Returns:
        ``norm(num_features, dim=None, **more) -> Module``.

    Raises:
        InputError: unknown method, a ``dim`` other than 1, 2 or 3, or a callable that builds no module.

    Example:
        >>> norm = norm_layer("group")
        >>> norm(64)
        GroupNorm(32, 64, eps=1e-05, affine=True, bias=True)
    """
    if not isinstance(method, str):
        return own_layers(method, dim, options)
    method, given = parse_spec(method)
    defaults = given | options
    method_named(method)
    _check_dim(dim)

    default_dim = dim

    def norm(num_features: int, dim: int | None = None, **more: Any) -> torch.nn.Module:
        dim, options = default_dim if dim is None else dim, defaults | more
        _check_dim(dim)
        if method in _BY_DIM:
            return _BY_DIM[method][dim](num_features, **{"affine": True} | options)
        if method in _ANY_DIM:
            return _ANY_DIM[method](num_features, **options)
        if method == "group":
            groups = options.get("num_groups")
            groups = groups_for(num_features) if groups is None else groups
            return GroupNorm(groups, num_features, **{k: v for k, v in options.items() if k != "num_groups"})
        if method == "layer":
            return GroupNorm(1, num_features, **options)
        if METHODS[method].function is METHODS["none"].function:
            return Identity()
        raise InputError(f"{method} has no layer class yet")

    return norm


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Read a method with options: ``"group(num_groups=4)"``.

    Values are numbers, ``True``, ``False``, ``None`` or words; ``a+b`` is a sequence of words.

    Args:
        text: the spec; a name alone has no options.

    Returns:
        Name and options, neither of them checked; see :func:`check_spec`.

    Raises:
        InputError: the text has another form.

    Example:
        >>> parse_spec("switchable(over=instance+batch, variance=official)")
        ('switchable', {'over': ('instance', 'batch'), 'variance': 'official'})
    """
    if not isinstance(text, str):
        raise InputError(f"expected the name of a method, one of {', '.join(METHODS)}, got {came(text)}")
    form = _SPEC.fullmatch(text)
    if form is None:
        raise InputError(f"cannot read the method {text!r}: expected a name, or name(option=value, ...)")
    options = {}
    for piece in filter(str.strip, (form[2] or "").split(",")):
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise InputError(f"cannot read {piece.strip()!r} in the method {text!r}: expected option=value")
        options[key] = _value(value)
    return form[1], options


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
        normwise.errors.InputError: group has no option 'groups': it takes num_groups, eps, affine, bias, activation
    """
    name, options = parse_spec(text)
    method_named(name)
    takes = _options_of(name)
    for option in options:
        if option not in takes:
            raise InputError(f"{name} has no option {option!r}: it takes {', '.join(takes) or 'none'}")
    if METHODS[name].on_weights:
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
            norm_layer(name, **options)(width)(torch.zeros(2, width, 2, 2))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{text}: {error}") from error
    return name, options


def _options_of(name: str) -> list[str]:
    """What a method's layers can be told beside their width, place and type."""
    if METHODS[name].on_weights:
        return list(_WEIGHT_OPTIONS)
    kind: Any = _ANY_DIM.get(name) or (GroupNorm if name in ("group", "layer") else _BY_DIM.get(name, {}).get(2))
    found: dict[str, None] = {}
    for base in kind.__mro__ if kind else ():
        parameters = inspect.signature(base.__init__).parameters.values() if "__init__" in vars(base) else ()
        found |= {p.name: None for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters) and parameters:
            break
    fixed = {"self", "num_features", "num_channels", "device", "dtype"} | ({"num_groups"} if name == "layer" else set())
    return [option for option in found if option not in fixed]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(text.split("+")) if "+" in text else text


def _check_dim(dim: int) -> None:
    if dim not in (1, 2, 3):
        raise InputError(f"dim must be 1, 2 or 3 spatial axes, got {dim!r}")
