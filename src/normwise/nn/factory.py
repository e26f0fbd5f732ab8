"""One way to ask for any method's layer by name."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from normwise.errors import InputError
from normwise.methods import METHODS, method_named
from normwise.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normwise.nn.groupnorm import GroupNorm, groups_for
from normwise.nn.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
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


class NormFactory(Protocol):
    """Builds a normalization layer for a number of channels: ``norm(64)``, or ``norm(64, dim=1)`` for other axes."""

    def __call__(self, num_features: int, dim: int | None = None) -> torch.nn.Module:
        """Build a layer."""
        ...


def norm_layer(method: str, dim: int = 2, **options: Any) -> NormFactory:
    """Give a factory of one method's layers, all with a learned weight and bias per channel.

    ``"layer"`` gives ``GroupNorm(1, C)``, the layer norm of a convolutional map. ``"none"`` and ``"weight"`` give
    identities: weight norm acts on the weights (:func:`normwise.weight_norm`).

    Args:
        method: a key of ``METHODS``.
        dim: spatial axes of the inputs, 1, 2 or 3, unless a call says otherwise.
        **options: passed to the layers.

    Returns:
        ``norm(num_features, dim=None) -> Module``.

    Raises:
        InputError: unknown method, or a ``dim`` other than 1, 2 or 3.

    Example:
        >>> norm = norm_layer("group")
        >>> norm(64)
        GroupNorm(32, 64, eps=1e-05, affine=True, bias=True)
    """
    method_named(method)
    _check_dim(dim)

    default_dim = dim

    def norm(num_features: int, dim: int | None = None) -> torch.nn.Module:
        dim = default_dim if dim is None else dim
        _check_dim(dim)
        if method in _BY_DIM:
            return _BY_DIM[method][dim](num_features, **{"affine": True} | options)
        if method in _ANY_DIM:
            return _ANY_DIM[method](num_features, **options)
        if method == "group":
            groups = options.get("num_groups") or groups_for(num_features)
            return GroupNorm(groups, num_features, **{k: v for k, v in options.items() if k != "num_groups"})
        if method == "layer":
            return GroupNorm(1, num_features, **options)
        if METHODS[method].function is METHODS["none"].function:
            return torch.nn.Identity()
        raise InputError(f"{method} has no layer class yet")

    return norm


def _check_dim(dim: int) -> None:
    if dim not in (1, 2, 3):
        raise InputError(f"dim must be 1, 2 or 3 spatial axes, got {dim!r}")
