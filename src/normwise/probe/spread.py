"""What the meters compare: several calls of one layer within a pass, and what eps leaves of an output."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

# Calls of one pass that are compared with its first, and passes that are kept.
_CALLS, _KEPT = 8, 16
# An output with less than this deviation is far below unit variance; a weight below it asks for no more.
LOW = 0.1


class Calls:
    """Compares the statistics of later calls of a layer with those of the first in the same pass."""

    def __init__(self) -> None:
        self._first: tuple[Tensor, Tensor] | None = None
        self._count = 0
        self._seen: dict[int, deque[tuple[Tensor, Tensor, float]]] = {}

    def take(self, mean: Tensor, var: Tensor, elements: float) -> None:
        """Take the statistics (C,) of one call."""
        self._count += 1
        if self._first is None:
            self._first = mean, var
        elif self._count <= _CALLS and self._first[0].shape == mean.shape:
            scale = self._first[1].clamp_min(1e-12)
            gap, ratio = (mean - self._first[0]) / scale.sqrt(), (var.clamp_min(1e-12) / scale).log()
            self._seen.setdefault(self._count, deque(maxlen=_KEPT)).append((gap, ratio, elements))

    def end_pass(self) -> None:
        """Close a pass."""
        self._first, self._count = None, 0

    def apart(self) -> dict[str, Any]:
        """How far the calls are apart: means in deviations, variances as a factor; chance is taken off."""
        if not self._seen:
            return {}
        means, factors = [], []
        for seen in self._seen.values():
            gaps, ratios = torch.stack([gap for gap, _, _ in seen]), torch.stack([ratio for _, ratio, _ in seen])
            chance = 2 / max(min(n for _, _, n in seen), 1)
            means.append(_beyond_chance(gaps, chance))
            factors.append(math.exp(min(_beyond_chance(ratios, 2 * chance), 50.0)))
        return {"apart_mean": max(means), "apart_var": max(factors)}


def _beyond_chance(values: Tensor, chance: float) -> float:
    """The root mean square over channels of the mean over passes, less what its noise alone gives."""
    noise = values.var(0) / len(values) if len(values) > 1 else torch.full_like(values[0], chance)
    return float((values.mean(0).square() - noise).mean().clamp_min(0).sqrt())


def drowned(var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Where eps, and not the weight, makes an output small."""
    size: Tensor | float = 1.0
    if weight is not None and weight.numel():
        size = weight.detach().abs().to(var).flatten()
        size = size if size.numel() == var.shape[-1] else size.median()
    scale = torch.as_tensor(size).to(var)
    return (var <= eps) & (scale * (var / (var + eps).clamp_min(1e-45)).sqrt() < LOW) & (scale >= LOW)


def initial(scale: Tensor | None, bias: Tensor | None) -> bool:
    """Whether a layer's scale and bias are still exactly what layers start with: all 1 (or all 0), and 0."""
    if scale is None or not scale.numel():
        return False
    at_start = bool((scale == 1).all() or (scale == 0).all())
    return at_start and (bias is None or bool((bias == 0).all()))
