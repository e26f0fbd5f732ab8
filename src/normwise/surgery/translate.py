"""What a layer's tensors are under another method, and back: of a model at hand or of any checkpoint of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from normwise.methods import METHODS, Inputs
from normwise.moments import Affine, Moments
from normwise.surgery.layers import NormLayer

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def translated(tensors: Mapping[str, Tensor], layer: NormLayer, to: str) -> dict[str, Tensor]:
    """Give the affine and statistics of the new layer for those of the old one, by name.

    Taking the normalization out of a layer with stored statistics puts these into weight and bias, which keeps its
    function in evaluation: weight / √(σ² + eps) and bias − μ · weight / √(σ² + eps).
    """
    affine = {name: tensors[name] for name in AFFINE if name in tensors}
    if folds(layer, to) and {"running_mean", "running_var"} <= set(tensors):
        dtype = next(iter(affine.values()), tensors["running_mean"]).dtype
        center, scale, shift = _evaluated(tensors, layer, affine)
        return {"weight": scale.to(dtype), "bias": (shift - center * scale).to(dtype)}
    kept = {name: tensors[name] for name in STATISTICS if name in tensors} if keeps_statistics(layer, to) else {}
    return affine | kept


def restored(tensors: Mapping[str, Tensor], layer: NormLayer, to: str) -> dict[str, Tensor]:
    """Give the old layer's tensors for those of the new one: :func:`translated` backwards.

    What the new layer does not hold comes from the old layer itself.
    """
    names = (*AFFINE, *STATISTICS)
    own = {name: getattr(layer, name).detach() for name in names if getattr(layer, name) is not None}
    given = {name: tensors[name] for name in own if name in tensors}
    if folds(layer, to) and "weight" in tensors:
        center, scale, _ = _evaluated(own, layer, {})
        weight = tensors["weight"].double()
        whole = {"weight": weight / scale, "bias": tensors["bias"].double() + center * weight}
        given |= {name: value.to(own[name].dtype) for name, value in whole.items() if name in own}
    return own | given


def folds(layer: NormLayer, to: str) -> bool:
    """Whether taking the normalization out puts stored statistics into weight and bias."""
    if to not in ("none", "weight") or layer.running_mean is None or layer.method not in METHODS:
        return False
    stored = Moments(layer.running_mean[None], layer.running_mean[None])
    return not METHODS[layer.method].reads_cells(Inputs(population=stored))


def _evaluated(tensors: Mapping[str, Tensor], layer: NormLayer, affine: Mapping[str, Tensor]) -> Affine:
    """The layer's map in evaluation, (C,) each, in float64: what its method makes of stored statistics alone."""
    stored = Moments(tensors["running_mean"].double()[None], tensors["running_var"].double()[None])
    weight, bias = (affine[name].double() if name in affine else None for name in AFFINE)
    inputs = Inputs(weight, bias, layer.eps, population=stored)
    parts = METHODS[layer.method].function(stored, inputs)
    return Affine(*(part.expand_as(stored.mean)[0] for part in parts))


def keeps_statistics(layer: NormLayer, to: str) -> bool:
    """Whether stored statistics of the old layer mean the same in the new one."""
    if layer.running_mean is None:
        return False
    if to == layer.method:
        return True
    if not {to, layer.method} <= METHODS.keys():
        return False
    # A tracked instance norm is a batch norm in evaluation.
    return METHODS[to].running and (layer.method == "instance" or METHODS[layer.method].running)
