"""The native operators for whole normalizations, as functions with names and defaults for what they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from normwise.kernels.cpu.fused import OPERATORS, operator_for_mix
from normwise.kernels.cpu.native import CODES


def sample_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Normalize every group of channels of every sample: ``act((x − μ) / √(σ² + eps) · weight + bias)`` in one trip."""
    return OPERATORS["sample_norm"](x, groups, weight, bias, eps, CODES[activation], slope)


def sample_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`sample_norm`, in one trip through ``g`` and ``x``."""
    return OPERATORS["sample_norm_backward"](g, x, moments, groups, weight, bias, eps, CODES[activation], slope)


def _is_one_pool(groups: Sequence[int], mean_weight: Tensor | None, var_weight: Tensor | None) -> bool:
    """Whether the mix is one pool, with no weight of its own: for that there are operators that take less time."""
    return len(groups) == 1 and mean_weight is var_weight is None


def mix_norm(
    x: Tensor,
    groups: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean_weight: Tensor | None = None,
    var_weight: Tensor | None = None,
    logits: bool = True,
    eps: float = 1e-5,
    population: Sequence[Any] | None = None,
    running: Sequence[Any] | None = None,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Normalize by a mix of pooled moments, ``act((x − Σ wₖμₖ) / √(Σ w′ₖσ²ₖ + eps) · weight + bias)``, in one call."""
    name, args = operator_for_mix(x, groups, weight, bias, mean_weight, var_weight, logits, eps, population, running)
    return OPERATORS[name](*args, CODES[activation], slope)


def mix_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    groups: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean_weight: Tensor | None = None,
    var_weight: Tensor | None = None,
    logits: bool = True,
    eps: float = 1e-5,
    population: Sequence[Any] | None = None,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of :func:`mix_norm`, by the closed-form vjp of pools and mix."""
    act = (CODES[activation], slope)
    one = _is_one_pool(groups, mean_weight, var_weight)
    if one and groups[0]:
        return *OPERATORS["sample_norm_backward"](g, x, moments, groups[0], weight, bias, eps, *act), None, None
    if one:
        return (
            *OPERATORS["batch_norm_backward"](g, x, moments, weight, bias, eps, population is None, True, *act),
            None,
            None,
        )
    known = (None, None) if population is None else population[:2]
    mix = (weight, bias, mean_weight, var_weight, logits, groups)
    return OPERATORS["mix_norm_backward"](g, x, moments, *mix, eps, *known, *act)


def layer_norm(
    x: Tensor,
    axes: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    centered: bool = True,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Normalize the last axes of every position: ``act((x − μ) / √(σ² + eps) · weight + bias)`` in one trip."""
    return OPERATORS["layer_norm"](x, axes, weight, bias, eps, centered, CODES[activation], slope)


def layer_norm_backward(
    g: Tensor,
    x: Tensor,
    moments: Tensor,
    axes: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    centered: bool = True,
    activation: str | None = None,
    slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of :func:`layer_norm`, in one trip through ``g`` and ``x``."""
    return OPERATORS["layer_norm_backward"](g, x, moments, axes, weight, bias, eps, centered, CODES[activation], slope)
