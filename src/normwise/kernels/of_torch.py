"""Torch's own kernels of whole normalizations: what serves a device that has none of ours.

They take two or three operators where the four kernels of the cells in plain torch take tens. Their means are of
float32, so that they lose what a mean of 1000 deviations costs in it; the docs say how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter


def takes(x: Tensor, *tensors: Tensor | None) -> bool:
    """Whether torch's kernels take an input with its parameters and running averages, all of one type (C,)."""
    if x.is_cpu or type(x) not in (Tensor, Parameter) or x.ndim < 2 or not x.is_floating_point():
        return False
    given = [t for t in tensors if t is not None]
    dtypes, shape = {t.dtype for t in given}, (x.shape[1],)
    fits = not dtypes or dtypes == {x.dtype} or (dtypes == {torch.float32} and x.dtype.itemsize == 2)
    return fits and all(t.shape == shape for t in given)


def sample_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalize by groups of channels within each sample."""
    if groups == x.shape[1] and x.ndim > 2:
        y = F.instance_norm(x, None, None, weight, bias, True, 0.0, eps)
    else:
        # Some of its kernels want one type; autocast gives float32 whatever came.
        given = weight if bias is None else bias
        y = F.group_norm(x if given is None else x.to(given.dtype), groups, weight, bias, eps).to(x.dtype)
    return _in_format_of(x, y)


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, population: Sequence[Any] | None = None
) -> Tensor:
    """Normalize by the moments of the batch, or of a population."""
    if population is None:
        return _in_format_of(x, F.batch_norm(x, None, None, weight, bias, True, 0.0, eps))
    mean, var = population[0].reshape(-1), population[1].reshape(-1)
    return _in_format_of(x, F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps))


def batch_norm_and_track(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    skipped: Tensor | None,
    tracked: Tensor | None,
) -> Tensor:
    """Normalize by the moments of the batch, and move running averages towards them."""
    if skipped is None and not isinstance(momentum, Tensor):
        y = F.batch_norm(x, mean, var, weight, bias, True, momentum, eps)
        if tracked is not None:
            tracked.add_(1)
        return _in_format_of(x, y)
    moved = torch.stack((mean, var))
    if isinstance(momentum, Tensor):
        batch = torch.zeros_like(moved)
        y = F.batch_norm(x, batch[0], batch[1], weight, bias, True, 1.0, eps)
        moved = moved.lerp(batch, momentum.to(batch.dtype).expand_as(batch))
    else:
        y = F.batch_norm(x, moved[0], moved[1], weight, bias, True, momentum, eps)
    settle((mean, var), moved, skipped, tracked)
    return _in_format_of(x, y)


def batch_moments_and_track(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    skipped: Tensor | None,
    tracked: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Give the moments of the batch, and move running averages towards them."""
    moved = torch.stack((mean, var)).to(x.dtype)
    if isinstance(momentum, Tensor):
        batch = torch.zeros_like(moved)
        found = torch.batch_norm_update_stats(x, batch[0], batch[1], 1.0)
        moved = moved.lerp(batch, momentum.to(batch.dtype).expand_as(batch))
    else:
        found = torch.batch_norm_update_stats(x, moved[0], moved[1], momentum)
    settle((mean, var), moved.to(mean.dtype), skipped, tracked)
    return found


def apply_to_cells(x: Tensor, center: Tensor, var: Tensor, factor: Tensor | None, shift: Tensor | None) -> Tensor:
    """Normalize each cell by its own center and variance (N, C): ``(x − center) / √var · factor + shift``."""
    weight, bias = (None if t is None else t.flatten() for t in (factor, shift))
    rows = x.reshape(1, center.numel(), -1)
    y = torch.native_batch_norm(rows, weight, bias, center.flatten(), var.flatten(), False, 0.0, 0.0)[0]
    return _in_format_of(x, y.view(x.shape))


def grads_of_cells(
    grad: Tensor, x: Tensor, center: Tensor, var: Tensor, factor: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradient of the input where center and variance are fixed, and per cell Σ g and Σ g · (x − center) / √var."""
    g, rows = (t.reshape(1, center.numel(), -1) for t in (grad, x))
    fixed = (None if factor is None else factor.flatten(), center.flatten(), var.flatten(), None, None)
    kernel = torch.ops.aten.native_batch_norm_backward
    dx, along, total = kernel(g, rows, *fixed, False, 0.0, [True, True, True])
    return _in_format_of(x, dx.view(x.shape)), torch.stack((total, along)).unflatten(1, center.shape)


def over_cells(t: Tensor, x: Tensor) -> Tensor:
    """A tensor (N, C), to broadcast against ``x``."""
    return t.reshape(t.shape + (1,) * (x.ndim - 2))


def settle(averages: Sequence[Tensor], moved: Tensor, skipped: Tensor | None, tracked: Tensor | None) -> None:
    """Take over moved averages (2, C) where all are finite, and count, without the host waiting for the device."""
    with torch.no_grad():
        if skipped is None:
            for average, value in zip(averages, moved, strict=True):
                average.copy_(value)
        else:
            finite = torch.linalg.vector_norm(moved, torch.inf) < torch.inf  # NaN is not less
            for average, value in zip(averages, moved, strict=True):
                torch.where(finite, value, average, out=average)
            skipped.add_(~finite)
        if tracked is not None:
            tracked.add_(1 if skipped is None else finite)


def _in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """The result in the memory format of the input, which some of torch's kernels do not keep."""
    if x.is_contiguous():
        return y
    memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if memory_format is None or not x.is_contiguous(memory_format=memory_format):
        return y
    return y.contiguous(memory_format=memory_format)
