"""What a layer's tensors are under another method, and back: of a model at hand or of any checkpoint of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from normwise.surgery.layers import NormLayer

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def translated(tensors: Mapping[str, Tensor], layer: NormLayer, to: str) -> dict[str, Tensor]:
    """Give the affine and statistics of the new layer for those of the old one, by name.

    Taking the normalization out of a layer with stored statistics puts these into weight and bias, which keeps its
    function in evaluation: weight / √(σ² + eps) and bias − μ · weight / √(σ² + eps).

    Args:
        tensors: the old layer's tensors, of this model or of another checkpoint of it.
        layer: the old layer's description.
        to: the method.

    Returns:
        The tensors that have a meaning for the new layer.

    Example:
        >>> from normwise.surgery.layers import describe
        >>> old = torch.nn.BatchNorm1d(1, eps=0.0)
        >>> translated({"running_mean": torch.ones(1), "running_var": 4 * torch.ones(1)}, describe(old), "none")
        {'weight': tensor([0.5000]), 'bias': tensor([-0.5000])}
    """
    affine = {name: tensors[name] for name in AFFINE if name in tensors}
    if folds(layer, to) and {"running_mean", "running_var"} <= set(tensors):
        mean, var = tensors["running_mean"].double(), tensors["running_var"].double()
        dtype = next(iter(affine.values()), tensors["running_mean"]).dtype
        scale = (affine["weight"].double() if "weight" in affine else 1) / torch.sqrt(var + layer.eps)
        shift = affine["bias"].double() - mean * scale if "bias" in affine else -mean * scale
        return {"weight": scale.to(dtype), "bias": shift.to(dtype)}
    kept = {name: tensors[name] for name in STATISTICS if name in tensors} if keeps_statistics(layer, to) else {}
    return affine | kept


def restored(tensors: Mapping[str, Tensor], layer: NormLayer, to: str) -> dict[str, Tensor]:
    """Give the old layer's tensors for those of the new one: :func:`translated` backwards.

    What the new layer does not hold comes from the old layer itself.

    Args:
        tensors: the new layer's tensors.
        layer: the old layer's description.
        to: the new layer's method.

    Returns:
        The old layer's tensors.

    Example:
        >>> from normwise.surgery.layers import describe
        >>> old = torch.nn.BatchNorm1d(1, eps=0.0)
        >>> restored({"weight": torch.tensor([0.5]), "bias": torch.tensor([1.0])}, describe(old), "none")["weight"]
        tensor([0.5000])
    """
    names = (*AFFINE, *STATISTICS)
    own = {name: getattr(layer, name).detach() for name in names if getattr(layer, name) is not None}
    given = {name: tensors[name] for name in own if name in tensors}
    if folds(layer, to) and layer.running_mean is not None and layer.running_var is not None and "weight" in given:
        std = torch.sqrt(layer.running_var.double() + layer.eps)
        given["weight"] = (tensors["weight"].double() * std).to(own["weight"].dtype)
        if "bias" in own:
            shift = tensors["bias"].double() + layer.running_mean.double() * tensors["weight"].double()
            given["bias"] = shift.to(own["bias"].dtype)
    return own | given


def folds(layer: NormLayer, to: str) -> bool:
    """Whether taking the normalization out puts stored statistics into weight and bias.

    Args:
        layer: the old layer.
        to: the new method.

    Returns:
        Whether it does.

    Example:
        >>> from normwise.surgery.layers import describe
        >>> folds(describe(torch.nn.BatchNorm1d(3)), "none"), folds(describe(torch.nn.GroupNorm(1, 3)), "none")
        (True, False)
    """
    return to in ("none", "weight") and layer.method in ("batch", "instance") and layer.running_mean is not None


def keeps_statistics(layer: NormLayer, to: str) -> bool:
    """Whether stored statistics of the old layer mean the same in the new one.

    Args:
        layer: the old layer.
        to: the new method.

    Returns:
        Whether they do.

    Example:
        >>> from normwise.surgery.layers import describe
        >>> keeps_statistics(describe(torch.nn.BatchNorm1d(3)), "switchable")
        True
    """
    if layer.running_mean is None:
        return False
    return to in ("batch", "switchable") or (to == "instance" == layer.method)
