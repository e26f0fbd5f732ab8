"""Whole normalizations as one native call each way, for the methods that are mixes of pooled moments.

What pools within a sample does both passes while a group is in the cache. Autograd in C++ differentiates the operators
where it was built (:func:`normwise.kernels.cpu.native.differentiates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normwise.kernels.cpu import native as _native  # noqa: F401 - it defines the operators

# A mix that moves no running averages.
_NOT_RUNNING = (None, None, 0.0, None, None)


def operator_for_mix(
    x: Tensor,
    groups: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    mean_weight: Tensor | None,
    var_weight: Tensor | None,
    logits: bool,
    eps: float,
    population: Sequence[Any] | None,
    running: Sequence[Any] | None,
) -> tuple[str, tuple[Any, ...]]:
    """Which operator serves a mix: of one pool there are some that take less."""
    one = len(groups) == 1 and mean_weight is var_weight is None
    if one and groups[0]:
        return "sample_norm", (x, groups[0], weight, bias, eps)
    if one and population is not None:
        mean, var = population[0], population[1]
        return "batch_norm", (x, weight, bias, eps, False, mean, var, None, None, 0.0)
    running_mean, running_var, momentum, skipped, tracked = _NOT_RUNNING if running is None else running
    averages = (running_mean, running_var, skipped, tracked, float(momentum))
    if one:
        return "batch_norm", (x, weight, bias, eps, True, *averages)
    known = (None, None) if population is None else _lasting(population)
    return "mix_norm", (x, weight, bias, mean_weight, var_weight, logits, groups, eps, *known, *averages)


def _lasting(population: Sequence[Any]) -> Sequence[Tensor]:
    """It may change before the backward pass, for which the operators keep a copy only where it stands alone."""
    mean, var = population[0], population[1]
    return (mean.clone(), var.clone()) if torch.is_grad_enabled() else (mean, var)


def _operator(name: str) -> Any:
    # Looked up once, and what it calls: either costs as much as a small tensor's arithmetic.
    operator = getattr(torch.ops.normwise, name).default
    return getattr(operator, "_op", operator)


_NAMES = ("sample_norm", "batch_norm", "mix_norm", "layer_norm")
OPERATORS = {name: _operator(name) for known in _NAMES for name in (known, f"{known}_backward")}
