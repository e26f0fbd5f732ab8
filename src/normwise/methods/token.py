"""Methods for tokens: each position by itself, over its channels or without any statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normwise.core.formula import Context
from normwise.core.method import Learned, Pooled
from normwise.core.moments import Moments
from normwise.methods.plain import NoNorm


@dataclass(frozen=True)
class RMS(Pooled):
    """Root-mean-square normalization (Zhang & Sennrich 2019, arXiv 1910.07467) of each position over its channels.

    Formula: y = (offset + weight) · x / √(mean(x²) + eps) + bias. ``offset=1`` is the convention of Gemma and others,
    whose weights are stored as differences from 1; the sum is taken in float32 at least, as in bfloat16 a small weight
    would be rounded away.

    Args:
        offset: what is added to the weight.

    Example:
        >>> RMS().affine(Moments(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)), Context(eps=0.0)).scale
        tensor([[0.2828]])
    """

    offset: float = field(default=0.0, kw_only=True)

    name = "rms"
    summary = "each position by the root mean square of its channels, without a mean"
    paper = "Zhang & Sennrich 2019, arXiv 1910.07467"
    pools = ("layer",)
    parts = "scale"
    per_token = True

    @property
    def weight_start(self) -> float:  # type: ignore[override]
        """What multiplies by 1."""
        return 1 - self.offset

    def terms(self, given: Context, pooled: Moments) -> Context:  # noqa: D102
        if not self.offset or given.weight is None:
            return given
        return given._replace(weight=self.offset + given.weight.to(pooled.mean.dtype))


@dataclass(frozen=True)
class L2(Pooled):
    """Each position by the length of its vector: y = weight · x / √(Σ x² + eps) + bias.

    RMS norm divided by √C: what QK norm does to queries and keys (Henry et al. 2020, arXiv 2010.04245).

    Example:
        >>> cells = Moments(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
        >>> L2().affine(cells, Context(eps=0.0)).scale
        tensor([[0.2000]])
    """

    summary = "each position to a vector of length 1"
    paper = "Henry et al. 2020, arXiv 2010.04245"
    pools = ("layer",)
    parts = "scale"
    unit_length = True
    per_token = True

    def terms(self, given: Context, pooled: Moments) -> Context:  # noqa: D102
        one = pooled.mean.new_ones(1)
        count = pooled.elements.clamp_min(1) if isinstance(pooled.elements, Tensor) else max(pooled.elements, 1)
        weight = one if given.weight is None else given.weight.to(one.dtype)
        return given._replace(weight=weight * count**-0.5, eps=given.eps / count)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DyT(NoNorm):
    """Dynamic tanh (Zhu et al. 2025, arXiv 2503.10622): a curve in the place of a normalization.

    Formula: y = weight · tanh(alpha · x) + bias, ``alpha`` a learned scalar. There are no statistics. The paper starts
    ``alpha`` at 0.5, in large models lower, and higher in attention than elsewhere.

    Args:
        alpha: where the learned ``alpha`` starts.

    Example:
        >>> DyT().curve(torch.tensor([2.0]), alpha=torch.tensor([0.5]))
        tensor([0.7616])
    """

    alpha: float = 0.5

    name = "dyt"
    summary = "the tanh of each element; no statistics"
    paper = "Zhu et al. 2025, arXiv 2503.10622"
    per_token = True

    @property
    def learned(self) -> Mapping[str, Learned]:  # type: ignore[override]
        """The steepness."""
        return {"alpha": Learned(self.alpha, size=1)}

    def curve(self, x: Tensor, alpha: Tensor) -> Tensor:
        """Give the tanh."""
        return torch.tanh(alpha * x)


@dataclass(frozen=True)
class Derf(NoNorm):
    """Dynamic erf (Chen et al. 2025, arXiv 2512.10938): a curve in the place of a normalization.

    Formula: y = weight · erf(alpha · x + shift) + bias, ``alpha`` and ``shift`` learned scalars. There are no
    statistics.

    Args:
        alpha: where the learned ``alpha`` starts.
        shift: where the learned ``shift`` starts.

    Example:
        >>> Derf().curve(torch.tensor([2.0]), alpha=torch.tensor([0.5]), shift=torch.zeros(1))
        tensor([0.8427])
    """

    alpha: float = 0.5
    shift: float = 0.0

    name = "derf"
    summary = "the error function of each element; no statistics"
    paper = "Chen et al. 2025, arXiv 2512.10938"
    per_token = True

    @property
    def learned(self) -> Mapping[str, Learned]:  # type: ignore[override]
        """The steepness and the place of the curve."""
        return {"alpha": Learned(self.alpha, size=1), "shift": Learned(self.shift, size=1)}

    def curve(self, x: Tensor, alpha: Tensor, shift: Tensor) -> Tensor:
        """Give the error function."""
        return torch.erf(alpha * x + shift)
