"""Build the layer that takes another's place, and carry over all that has a meaning there."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from normwise import nn
from normwise.core.moments import Affine, Moments
from normwise.kernels.reference import widened
from normwise.methods import METHODS, Context, Method, traits_of
from normwise.nn import groups_for
from normwise.nn._eps import stored_eps
from normwise.nn.factory import classes_of
from normwise.nn.own import Given, as_method
from normwise.nn.synced import shares
from normwise.surgery.description import NormLayer, is_ours, scales_channels
from normwise.surgery.freeze import _MARK, freeze, is_frozen
from normwise.surgery.layouts import CLASSES, Adapted, AtAxis, GroupNormNd, LayerNormNd, OwnNormNd, core
from normwise.surgery.running import has_hooks

# Modules that our layers compute themselves, fused, instead of calling them.
_FUSED: dict[type, str] = {torch.nn.ReLU: "relu", torch.nn.SiLU: "silu", torch.nn.LeakyReLU: "leaky_relu"}

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")


@dataclass(frozen=True)
class Order:
    """What to build: the method, options of its layers, and how a switchable mix is to start.

    ``affine`` asks for a weight and bias even where the old layer has none. ``share`` is the old method's initial share
    in a switchable mix. ``own`` is the method itself if it is one's own, ``to`` being what it is called.
    """

    to: str
    options: Mapping[str, Any] = field(default_factory=dict)
    affine: bool = False
    share: float | None = None
    own: Given | None = None

    @property
    def traits(self) -> Method:
        """The method; where one's own says nothing of itself, one without traits."""
        if self.own is not None:
            return as_method(self.own) or traits_of(self.to)
        return METHODS[self.to].taking(self.options)[0]


@dataclass(frozen=True)
class Built:
    """A new layer, what of the old one is in it, and what is not and why."""

    module: torch.nn.Module
    carried: list[str]
    lost: list[str]


def refusal(layer: NormLayer, order: Order, spatial: set[int]) -> str | None:
    """Say why a layer cannot become another method."""
    if layer.problem is not None:
        return layer.problem
    if not layer.channels:
        return "without parameters it takes any number of channels: give example_inputs that run it"
    if order.own is not None:
        return None  # what it needs shows when it runs
    if spatial != {0}:
        return None
    method = order.traits
    if method.needs_space:
        return f"its input is (N, C), which has no space to take {order.to} norm over"
    if method.rests_on == "group" and method.groups(layer.channels) == layer.channels > 1:
        return f"its input is (N, C), of which {layer.channels} groups of one channel leave nothing"
    return None


def unneeded(module: torch.nn.Module, layer: NormLayer, order: Order) -> str | None:
    """Say why a layer may stay as it is."""
    if layer.traits.unit_length and not is_ours(module):
        return "it gives vectors of length 1, which is no normalization of activations"
    if layer.method != order.to or order.options or layer.frozen:
        return None
    # torch's own classes become ours; a layer norm per token is another formula than ours and is kept.
    return f"already {order.to} norm" if is_ours(module) or layer.per_token else None


def build(module: torch.nn.Module, layer: NormLayer, order: Order, spatial: set[int], like: Tensor | None) -> Built:
    """Make the new layer with the old one's parameters, buffers, mode, hooks and attributes.

    Parameters are carried as the same objects: optimizers, ties and gradients that know them need no telling.
    """
    new = _new_layer(layer, order, spatial, like) if order.own is None else _own_layer(layer, order, spatial, like)
    taken = order.own is None or scales_channels(core(new), layer.channels)
    carried = _carry_affine(layer, core(new), order) if taken else []
    carried_buffers, lost = _carry_statistics(layer, core(new), order.to)
    lost += [] if taken else [f"weight, bias: {order.to} has none that only scale and shift each channel"]
    reads_eps = order.own is not None or METHODS[order.to].pools
    if reads_eps and layer.eps and stored_eps(getattr(core(new), "eps", None)) == layer.eps:
        carried.append(f"eps {layer.eps:g}")
    carried += carried_buffers + _carry_tail(layer) + _carry_hooks(module, new) + _carry_attributes(module, new)
    if isinstance(new, nn.SwitchableNorm) and order.share is not None:
        _lean(new, layer.method, order.share)
    new.training = module.training
    if layer.synced and shares(new):
        nn.sync(new, module.process_group if isinstance(module, torch.nn.SyncBatchNorm) else module.sync.process_group)  # type: ignore[union-attr, arg-type]
        carried.append("shared with other processes")
    if order.own is not None and (is_frozen(module) or layer.frozen):
        lost.append("it was frozen")
    elif is_frozen(module) or layer.frozen:
        _carry_freeze(module, new)
        carried.append("frozen")
    return Built(new, carried, lost + _lost_meaning(module, layer, order, new))


def _new_layer(layer: NormLayer, order: Order, spatial: set[int], like: Tensor | None) -> torch.nn.Module:
    """An untrained layer of the method that fits the place."""
    activation = _fused_activation(layer)
    device, dtype = layer.device, layer.dtype
    if device is None and like is not None:
        device, dtype = like.device, like.dtype
    into_affine = folds(layer, order.to)
    affine = layer.weight is not None or layer.bias is not None or order.affine or into_affine
    options: dict[str, Any] = {"affine": affine, "device": device, "dtype": dtype, "activation": activation}
    options["bias"] = layer.bias is not None or order.affine or into_affine
    method = METHODS[order.to]
    if method.tracks:
        options |= {"momentum": layer.momentum, "track_running_stats": _tracks(layer, order.to)}
    if method.only_affine:
        options["method"] = order.to
    elif layer.eps:
        options["eps"] = layer.eps
    options |= {k: v for k, v in order.options.items() if k not in ("per_token", "axis")}
    sizes: tuple[int, ...] = (layer.channels,)
    tail = () if activation is not None and layer.activation is None else layer.tail
    cls = _class_for(layer, order, spatial, bool(tail))
    if issubclass(cls, torch.nn.GroupNorm):
        groups = layer.num_groups if order.to == layer.method else _groups(layer, spatial)
        sizes = (options.pop("num_groups", groups) if method.grouped else 1, layer.channels)
    new = cls(*sizes, **options)
    if isinstance(new, Adapted):
        new.adapt("last" if layer.channel_axis == -1 else "first", tail)
    return new


def _own_layer(layer: NormLayer, order: Order, spatial: set[int], like: Tensor | None) -> torch.nn.Module:
    """An untrained layer of a method of one's own, with what the old layer did afterwards."""
    assert order.own is not None
    place = like if layer.device is None else next(iter(layer.tensors.values()))
    told: dict[str, Any] = {} if place is None else {"device": place.device, "dtype": place.dtype}
    told |= {"eps": layer.eps} if layer.eps else {}
    axes = next(iter(spatial)) if len(spatial) == 1 else 2 if layer.dim is None else layer.dim
    last = layer.channel_axis == -1
    method = as_method(order.own)
    if method is not None and method.per_token is not False:
        told["axis"], last = layer.channel_axis, False  # it finds its channels there itself
    new = nn.norm_layer(order.own, max(axes, 1), **order.options)(layer.channels, **told)
    tail = layer.tail
    if layer.activation is not None:
        tail = (("act", {name: kind for kind, name in _FUSED.items()}[layer.activation]()), *tail)
    return OwnNormNd(new).adapt("last" if last else "first", tail) if last or tail else new


# Without space a group's statistics rest on its channels alone; two of them become 1 and -1, whatever they were. This
# many are the paper's other choice (arXiv 1803.08494, table 3).
_CHANNELS_A_GROUP = 16


def _groups(layer: NormLayer, spatial: set[int]) -> int:
    """How many groups suit the layer: fewer where its input is (N, C), or may be for all that is known."""
    rows = 0 in spatial or (not spatial and layer.dim == 1)
    return groups_for(layer.channels, max(min(32, layer.channels // _CHANNELS_A_GROUP), 1) if rows else 32)


def by_position(layer: NormLayer, order: Order) -> bool:
    """Whether the new layer treats each position by itself."""
    if order.traits.per_token is None:
        return layer.channel_axis == -1 or layer.per_token
    return order.traits.per_token


def _class_for(layer: NormLayer, order: Order, spatial: set[int], tail: bool) -> type[torch.nn.Module]:
    """The plain class where it is sure to fit, else the one that takes anything."""
    method, adapted = METHODS[order.to], CLASSES[order.to]
    if adapted is GroupNormNd and by_position(layer, order):
        return LayerNormNd
    if method.only_affine or issubclass(adapted, AtAxis) or layer.channel_axis == -1 or tail:
        return adapted
    kinds = classes_of(method)
    if len(kinds) == 1:
        return nn.GroupNorm if adapted is GroupNormNd else kinds[0]
    dim = layer.dim if not spatial else next(iter(spatial)) if len(spatial) == 1 else None
    if dim == 0:
        dim = 1
    if dim == 1 and method.needs_space and layer.method != order.to and not spatial:
        dim = None  # a BatchNorm1d may see (N, C), which an InstanceNorm1d would take for one unbatched (C, L)
    return kinds[dim - 1] if dim in (1, 2, 3) else adapted


def _tracks(layer: NormLayer, to: str) -> bool:
    """Whether the new layer keeps running averages: not where the old one of such a method did without."""
    if not METHODS[to].running:
        return keeps_statistics(layer, to)
    return layer.running_mean is not None or not layer.traits.running


def _fused_activation(layer: NormLayer) -> str | None:
    """The name under which our layers compute what follows; ``None`` where they must call it."""
    if layer.activation is not None:
        return layer.activation
    if len(layer.tail) != 1:
        return None
    module = layer.tail[0][1]
    other_slope = isinstance(module, torch.nn.LeakyReLU) and not math.isclose(module.negative_slope, 0.01)
    return None if has_hooks(module) or other_slope else _FUSED.get(type(module))


def _carry_affine(layer: NormLayer, new: torch.nn.Module, order: Order) -> list[str]:
    tensors = {n: t.detach() for n, t in layer.tensors.items()}
    values = translated(tensors, layer, order.to)
    carried = []
    for name in AFFINE:
        old = getattr(layer, name)
        if order.own is not None and name not in new._parameters:
            continue
        if folds(layer, order.to):
            asks = old.requires_grad if isinstance(old, torch.nn.Parameter) else True
            new._parameters[name] = torch.nn.Parameter(values[name].clone(), requires_grad=asks)
        elif old is not None:
            named = layer.names[AFFINE.index(name)]
            offset = getattr(core(new), "offset", 0.0)
            plain = _plain(layer, name, old, offset)
            same = isinstance(old, torch.nn.Parameter) and plain is old
            asks = old.requires_grad if isinstance(old, torch.nn.Parameter) else True
            new._parameters[name] = old if same else torch.nn.Parameter(plain.detach().clone(), requires_grad=asks)
            shifted = name == "weight" and layer.offset != offset
            carried.append(f"{layer.offset - offset:g} + {named}" if shifted else named)
    if folds(layer, order.to):
        carried.append("running_mean, running_var, weight and bias, as one weight and bias: the same in evaluation")
    return carried


def _plain(layer: NormLayer, name: str, value: Tensor, offset: float = 0.0) -> Tensor:
    """A layer's weight or bias as a layer of ours of an offset holds it: (C,)."""
    if name == "weight" and layer.offset != offset:
        wide = value.detach().to(torch.promote_types(value.dtype, torch.float32))
        value = (wide + (layer.offset - offset)).to(value.dtype)
    if value.numel() == 1 < layer.channels:
        return value.detach().expand(layer.channels)
    return value if value.ndim == 1 else value.detach().flatten()


def _as_held(layer: NormLayer, name: str, value: Tensor, offset: float) -> Tensor:
    """The other way round: as the described module holds it."""
    old = getattr(layer, name)
    value = value - (layer.offset - offset) if name == "weight" and layer.offset != offset else value
    return value if value.shape == old.shape or value.numel() != old.numel() else value.reshape(old.shape)


def _carry_statistics(layer: NormLayer, new: torch.nn.Module, to: str) -> tuple[list[str], list[str]]:
    kept, fresh = keeps_statistics(layer, to), new._buffers.get("running_mean") is not None
    if kept and fresh:
        names = [name for name in STATISTICS if getattr(layer, name) is not None]
        for name in names:
            new._buffers[name] = getattr(layer, name).detach().clone()
        return names, []
    if fresh:
        return [], ["no running statistics to carry: they start at mean 0, variance 1; calibrate before evaluating"]
    if layer.running_mean is not None and not folds(layer, to):
        whose = f"{to} norm takes its statistics from each input" if to in METHODS else f"{to} keeps none"
        return [], [f"running_mean, running_var: {whose}"]
    return [], []


def _carry_tail(layer: NormLayer) -> list[str]:
    names = [type(module).__name__ for _, module in layer.tail]
    return [f"activation {name}" for name in ([layer.activation] if layer.activation else []) + names]


def _carry_hooks(module: torch.nn.Module, new: torch.nn.Module) -> list[str]:
    # The same dicts, not copies: the handles that were given out go on working.
    for name in _HOOKS:
        if hasattr(module, name):
            object.__setattr__(new, name, getattr(module, name))
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    count = sum(map(len, kinds))
    return [f"{count} hook(s)"] if count else []


def _carry_attributes(module: torch.nn.Module, new: torch.nn.Module) -> list[str]:
    """Take over what somebody hung on the layer: public attributes that no constructor argument made."""
    arguments = {name for cls in type(module).__mro__ for name in inspect.signature(cls.__init__).parameters}  # type: ignore[misc]
    skip = arguments | set(vars(new)) | {"train", "forward", "normalized_shape", "layout"}
    names = [n for n in vars(module) if not n.startswith("_") and n not in skip and not hasattr(type(module), n)]
    for name in names:
        setattr(new, name, getattr(module, name))
    return [f"attribute {name}" for name in names]


def _carry_freeze(module: torch.nn.Module, new: torch.nn.Module) -> None:
    mark = vars(module).get(_MARK)
    freeze(new, where=lambda *_: True, affine=mark is None)
    if mark is not None:
        vars(new)[_MARK] |= {"training": mark["training"], "requires_grad": dict(mark["requires_grad"])}


def _lean(new: nn.SwitchableNorm, method: str, share: float) -> None:
    """Start a mix with a given share of the old method, the others equal."""
    if method not in new.over or len(new.over) == 1:
        return
    logit = 1 + math.log(share * (len(new.over) - 1) / (1 - share))
    with torch.no_grad():
        for mix in (new.mean_weight, new.var_weight):
            mix[new.over.index(method)] = logit


def _lost_meaning(module: torch.nn.Module, layer: NormLayer, order: Order, new: torch.nn.Module) -> list[str]:
    """What a method did that the other does not."""
    to, lost = order.to, []
    old, now = layer.traits, traits_of(to)
    if layer.synced and getattr(new, "sync", None) is None:
        lost.append("statistics are no longer shared between processes")
    if now.pools and layer.per_token and not by_position(layer, order):
        lost.append("statistics per position: the new ones are taken over all positions of a sample or batch")
    if old.pools and now.pools and old.centres != now.centres:
        lost.append("it subtracted the mean" if old.centres else "it did not subtract the mean")
    if old.pools and now.curve is not None:
        lost.append("its statistics: a curve of each element stands in their place")
    learned = [name for name, _ in module.named_parameters(recurse=False) if name not in layer.names]
    if learned and layer.problem is None:
        lost.append(f"{', '.join(learned)}: {layer.method} norm's own parameters")
    if now.only_affine and not old.only_affine and not folds(layer, to):
        lost.append("the division by the input's own standard deviation: only weight and bias are left")
    if now.grouped and isinstance(new, torch.nn.GroupNorm) and new.num_groups == 1:
        lost.append(f"{layer.channels} channel(s) have no divisor to group by: one group, which is layer norm")
    if any(getattr(module, name, None) for name in _STATE_HOOKS):
        lost.append("hooks on its state_dict")
    return lost


def translated(tensors: Mapping[str, Tensor], layer: NormLayer, to: str, offset: float = 0.0) -> dict[str, Tensor]:
    """Give the affine and statistics of the new layer, of an ``offset`` of its own, for those of the old one, by name.

    Taking the normalization out of a layer with stored statistics puts these into weight and bias, which keeps its
    function in evaluation: weight / √(σ² + eps) and bias − μ · weight / √(σ² + eps).
    """
    held = zip(AFFINE, layer.names, strict=True)
    affine = {name: _plain(layer, name, tensors[key], offset) for name, key in held if key in tensors}
    if folds(layer, to) and {"running_mean", "running_var"} <= set(tensors):
        like = next(iter(affine.values()), tensors["running_mean"])
        center, scale, shift = evaluated(tensors, layer, affine)
        return {"weight": scale.to(like), "bias": (shift - center * scale).to(like)}
    kept = {name: tensors[name] for name in STATISTICS if name in tensors} if keeps_statistics(layer, to) else {}
    return affine | kept


def restored(tensors: Mapping[str, Tensor], layer: NormLayer, to: str, offset: float = 0.0) -> dict[str, Tensor]:
    """Give the old layer's tensors for those of the new one: :func:`translated` backwards.

    What the new layer does not hold comes from the old layer itself.
    """
    names = (*AFFINE, *STATISTICS)
    own = {name: getattr(layer, name).detach() for name in names if getattr(layer, name) is not None}
    given = {name: _as_held(layer, name, tensors[name], offset) for name in own if name in tensors}
    if folds(layer, to) and "weight" in tensors:
        center, scale, _ = evaluated(own, layer, {})
        weight = widened(tensors["weight"])
        whole = {"weight": weight / scale, "bias": widened(tensors["bias"]) + center * weight}
        given |= {name: value.to(own[name]) for name, value in whole.items() if name in own}
    keys = dict(zip(AFFINE, layer.names, strict=True))
    return {keys.get(name, name): value for name, value in (own | given).items()}


def folds(layer: NormLayer, to: str) -> bool:
    """Whether taking the normalization out puts stored statistics into weight and bias."""
    stored = layer.running_mean is not None and layer.method in METHODS
    return stored and traits_of(to).only_affine and layer.traits.folds


def evaluated(tensors: Mapping[str, Tensor], layer: NormLayer, affine: Mapping[str, Tensor]) -> Affine:
    """The layer's map in evaluation, (C,) each, in float64: what its method makes of stored statistics alone."""
    stored = Moments(widened(tensors["running_mean"])[None], widened(tensors["running_var"])[None])
    weight, bias = (widened(affine[name]) if name in affine else None for name in AFFINE)
    parts = layer.traits.affine(stored, Context(weight, bias, layer.eps, population=stored))
    return Affine(*(part.expand_as(stored.mean)[0] for part in parts))


def keeps_statistics(layer: NormLayer, to: str) -> bool:
    """Whether stored statistics of the old layer mean the same in the new one."""
    if layer.running_mean is None:
        return False
    if to == layer.method:
        return True
    # A tracked instance norm is a batch norm in evaluation.
    return traits_of(to).running and layer.traits.tracks
