"""Batch normalization and its relatives: over the samples, per channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from normwise.core.formula import Context, batch_moments, mean_over_samples, standardize
from normwise.core.method import Method, Pooled
from normwise.core.moments import Affine, Moments, pool
from normwise.errors import InputError


@dataclass(frozen=True)
class Batch(Pooled):
    """Batch normalization (Ioffe & Szegedy 2015, arXiv 1502.03167): over the samples, per channel.

    Formula: y = weight · (x − μ[c]) / √(σ²[c] + eps) + bias, with the batch's moments, or the running averages in
    evaluation.

    Example:
        >>> Batch().affine(Moments(torch.tensor([[0.0], [2.0]]), torch.zeros(2, 1)), Context(eps=0.0)).center
        tensor([[1.]])
    """

    parts: str = field(default="both", kw_only=True)

    summary = "per channel over the batch; running averages in evaluation"
    paper = "Ioffe & Szegedy 2015, arXiv 1502.03167"
    pools = ("batch",)


@dataclass(frozen=True)
class MeanOnlyBatch(Pooled):
    """Mean-only batch normalization (Salimans & Kingma 2016, arXiv 1602.07868, section 4).

    Formula: y = weight · (x − μ[c]) + bias.

    Example:
        >>> MeanOnlyBatch().affine(Moments(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)), Context())
        Affine(center=tensor([[2.]]), scale=tensor([[1.]]), shift=tensor([[0.]]))
    """

    summary = "batch norm without the division; goes with weight norm"
    paper = "Salimans & Kingma 2016, arXiv 1602.07868"
    pools = ("batch",)
    parts = "mean"


@dataclass(frozen=True)
class BatchRenorm(Method):
    """Batch renormalization (Ioffe 2017, arXiv 1702.03275): batch norm, corrected towards the running averages.

    Formula: y = weight · ((x − μ_B) / σ_B · r + d) + bias, with r = clip(σ_B / σ, 1/r_max, r_max) and d =
    clip((μ_B − μ) / σ, −d_max, d_max) held constant in the backward pass; μ, σ are the running averages before this
    batch. Without running averages it is batch norm.

    Example:
        >>> cells, stored = Moments(torch.ones(1, 1), torch.ones(1, 1)), Moments(torch.zeros(1, 1), torch.ones(1, 1))
        >>> BatchRenorm().affine(cells, Context(eps=0.0, reference=stored)).shift
        tensor([[1.]])
    """

    r_max: float | Tensor = 3.0
    d_max: float | Tensor = 5.0

    summary = "batch norm that trains on what evaluation will see: corrected towards the running averages"
    paper = "Ioffe 2017, arXiv 1702.03275"
    pools = ("batch",)
    reads_reference = True

    def affine(self, cells: Moments, given: Context) -> Affine:
        """Standardize by the batch, and correct."""
        m = batch_moments(cells, given)
        center, scale, shift = standardize(m, given)
        if given.reference is None or given.population is not None:
            return Affine(center, scale, shift)
        r_max, d_max = (limit if isinstance(limit, Tensor) else float(limit) for limit in (self.r_max, self.d_max))
        inverse = torch.rsqrt(given.reference.var + given.eps)
        bounds: list[Any] = [1 / r_max, r_max, -d_max, d_max]
        r = (torch.sqrt(m.var + given.eps) * inverse).detach().clamp(*bounds[:2])
        d = ((m.mean - given.reference.mean) * inverse).detach().clamp(*bounds[2:])
        return Affine(center, scale * r, shift + (d if given.weight is None else d * given.weight.to(d.dtype)))


@dataclass(frozen=True)
class GhostBatch(Method):
    """Ghost batch normalization (Hoffer et al. 2017, arXiv 1705.08741): batch norm over parts of the batch.

    Formula: batch norm's, within each run of about ``ghost_size`` consecutive samples. The batch is cut into
    max(1, N // ghost_size) runs whose sizes differ by at most one, so none is smaller than asked unless the batch is.
    Ghosts are small on purpose and stay with their process.

    Example:
        >>> cells = Moments(torch.tensor([[0.0], [2.0], [5.0], [7.0]]), torch.zeros(4, 1))
        >>> GhostBatch(ghost_size=2).affine(cells, Context()).center.ravel()
        tensor([1., 1., 6., 6.])
    """

    ghost_size: int = 32

    summary = "batch norm over small parts of a large batch"
    paper = "Hoffer et al. 2017, arXiv 1705.08741"
    pools = ("batch",)
    synced = False

    def __post_init__(self) -> None:
        if self.ghost_size < 1:
            raise InputError(f"ghost_size counts samples, at least 1, got {self.ghost_size}")

    def affine(self, cells: Moments, given: Context) -> Affine:
        """Standardize each ghost by its own moments."""
        if given.population is not None:
            return standardize(given.population, given)
        runs = [(run.mean.shape[0], pool(run, 0)) for run in self._ghosts(cells)]
        mean = torch.cat([m.mean.expand(n, -1) for n, m in runs])
        var = torch.cat([m.var.expand(n, -1) for n, m in runs])
        return standardize(Moments(mean, var), given)

    def track(self, cells: Moments, given: Context) -> Moments:
        """The mean over ghosts of each one's own moments: the spread between them does not enter, as in the paper."""
        runs = [pool(run, 0) for run in self._ghosts(cells)]
        counts = [torch.as_tensor(run.elements, device=cells.mean.device).expand_as(run.mean) for run in runs]
        joined = (torch.cat(t) for t in ([m.mean for m in runs], [m.var for m in runs], counts))
        return mean_over_samples(Moments(*joined))

    def _ghosts(self, cells: Moments) -> list[Moments]:
        """The batch in runs of samples."""
        # torch.jit.trace has tensors in the place of sizes: of this one it takes the number.
        parts = max(1, int(cells.mean.shape[0]) // self.ghost_size)
        means, variances = cells.mean.tensor_split(parts), cells.var.tensor_split(parts)
        if not isinstance(cells.elements, Tensor):
            return [Moments(mean, var, cells.elements) for mean, var in zip(means, variances, strict=True)]
        counts = cells.elements.expand_as(cells.mean).tensor_split(parts)
        return [Moments(*run) for run in zip(means, variances, counts, strict=True)]
