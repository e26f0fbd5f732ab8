"""Choose and build the layer that takes another's place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normwise import nn
from normwise.methods import METHODS
from normwise.nn import groups_for
from normwise.nn._eps import stored_eps
from normwise.nn.factory import classes_of
from normwise.nn.own import as_method
from normwise.nn.synced import shares
from normwise.surgery.carry import (
    carry_affine,
    carry_attributes,
    carry_freeze,
    carry_hooks,
    carry_statistics,
    carry_tail,
    folds,
    keeps_statistics,
    lost_meaning,
)
from normwise.surgery.description import NormLayer, is_ours, scales_channels
from normwise.surgery.freeze import is_frozen
from normwise.surgery.layouts import CLASSES, Adapted, AtAxis, GroupNormNd, LayerNormNd, OwnNormNd, core
from normwise.surgery.order import Order, by_position
from normwise.surgery.running import has_hooks

# Modules that our layers compute themselves, fused, instead of calling them.
_FUSED: dict[type, str] = {torch.nn.ReLU: "relu", torch.nn.SiLU: "silu", torch.nn.LeakyReLU: "leaky_relu"}


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
    carried = carry_affine(layer, core(new), order) if taken else []
    carried_buffers, lost = carry_statistics(layer, core(new), order.to)
    lost += [] if taken else [f"weight, bias: {order.to} has none that only scale and shift each channel"]
    reads_eps = order.own is not None or METHODS[order.to].pools
    if reads_eps and layer.eps and stored_eps(getattr(core(new), "eps", None)) == layer.eps:
        carried.append(f"eps {layer.eps:g}")
    carried += carried_buffers + carry_tail(layer) + carry_hooks(module, new) + carry_attributes(module, new)
    if isinstance(new, nn.SwitchableNorm) and order.share is not None:
        _lean(new, layer.method, order.share)
    new.training = module.training
    if layer.synced and shares(new):
        nn.sync(new, module.process_group if isinstance(module, torch.nn.SyncBatchNorm) else module.sync.process_group)  # type: ignore[union-attr, arg-type]
        carried.append("shared with other processes")
    if order.own is not None and (is_frozen(module) or layer.frozen):
        lost.append("it was frozen")
    elif is_frozen(module) or layer.frozen:
        carry_freeze(module, new)
        carried.append("frozen")
    return Built(new, carried, lost + lost_meaning(module, layer, order, new))


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


def _lean(new: nn.SwitchableNorm, method: str, share: float) -> None:
    """Start a mix with a given share of the old method, the others equal."""
    if method not in new.over or len(new.over) == 1:
        return
    logit = 1 + math.log(share * (len(new.over) - 1) / (1 - share))
    with torch.no_grad():
        for mix in (new.mean_weight, new.var_weight):
            mix[new.over.index(method)] = logit
