"""What the stateful layers share: checks that torch.fx may trace past, and the bookkeeping of running averages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase


@torch.fx.wrap
def check_dim(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Refuse an input whose number of axes the layer does not take, in torch's words; a leaf for torch.fx."""
    if x.dim() not in dims:
        expected = " or ".join(f"{d}D" for d in dims)
        raise ValueError(f"expected {expected} input (got {x.dim()}D input)")
    return x


def uses_running(layer: _NormBase) -> bool:
    """Whether the layer normalizes by its running averages now."""
    return not layer.training and layer.running_mean is not None


def count_batch(layer: _NormBase) -> float | Tensor | None:
    """Count one training batch and give its weight in the running averages; ``None`` where they must not move."""
    if not (layer.training and layer.track_running_stats):
        return None
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    if layer.running_mean is None:
        return None
    if layer.momentum is None:
        # A cumulative average. As a tensor it neither breaks a compiled graph nor synchronizes with a device.
        return 0.0 if layer.num_batches_tracked is None else layer.num_batches_tracked.float().reciprocal()
    return layer.momentum
