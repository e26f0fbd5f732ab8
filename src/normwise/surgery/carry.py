"""Carry over from a layer to the one in its place all that has a meaning there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor

from normwise.core.moments import Affine, Moments
from normwise.kernels.reference import widened
from normwise.methods import METHODS, Context, traits_of
from normwise.surgery.description import NormLayer
from normwise.surgery.freeze import _MARK, freeze
from normwise.surgery.layouts import core
from normwise.surgery.order import Order, by_position

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

HOOKS = (
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


def carry_affine(layer: NormLayer, new: torch.nn.Module, order: Order) -> list[str]:
    """Put the old weight and bias in; the same objects where they can be, as optimizers know them."""
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


def carry_statistics(layer: NormLayer, new: torch.nn.Module, to: str) -> tuple[list[str], list[str]]:
    """Copy what running statistics mean the same; gives what was carried and what was lost."""
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


def carry_tail(layer: NormLayer) -> list[str]:
    """Name what follows the normalization."""
    names = [type(module).__name__ for _, module in layer.tail]
    return [f"activation {name}" for name in ([layer.activation] if layer.activation else []) + names]


def carry_hooks(module: torch.nn.Module, new: torch.nn.Module) -> list[str]:
    """Let the old layer's hooks follow the new one."""
    # The same dicts, not copies: the handles that were given out go on working.
    for name in HOOKS:
        if hasattr(module, name):
            object.__setattr__(new, name, getattr(module, name))
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    count = sum(map(len, kinds))
    return [f"{count} hook(s)"] if count else []


def carry_attributes(module: torch.nn.Module, new: torch.nn.Module) -> list[str]:
    """Take over what somebody hung on the layer: public attributes that no constructor argument made."""
    arguments = {name for cls in type(module).__mro__ for name in inspect.signature(cls.__init__).parameters}  # type: ignore[misc]
    skip = arguments | set(vars(new)) | {"train", "forward", "normalized_shape", "layout"}
    names = [n for n in vars(module) if not n.startswith("_") and n not in skip and not hasattr(type(module), n)]
    for name in names:
        setattr(new, name, getattr(module, name))
    return [f"attribute {name}" for name in names]


def carry_freeze(module: torch.nn.Module, new: torch.nn.Module) -> None:
    """Freeze the new layer as the old one was."""
    mark = vars(module).get(_MARK)
    freeze(new, where=lambda *_: True, affine=mark is None)
    if mark is not None:
        vars(new)[_MARK] |= {"training": mark["training"], "requires_grad": dict(mark["requires_grad"])}


def lost_meaning(module: torch.nn.Module, layer: NormLayer, order: Order, new: torch.nn.Module) -> list[str]:
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
