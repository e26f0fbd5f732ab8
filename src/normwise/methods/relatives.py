"""Relatives of the six: each a few lines on the same moments. Layers for them are in ``normwise.nn.relatives``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normwise.core.moments import Affine, Moments, pool
from normwise.methods.family import Inputs, _batch_moments, _mean_over_samples, standardize


def batch_renorm(cells: Moments, p: Inputs) -> Affine:
    """Batch renormalization (Ioffe 2017, arXiv 1702.03275): batch norm, corrected towards the running averages.

    Formula: y = weight · ((x − μ_B) / σ_B · r + d) + bias, with r = clip(σ_B / σ, 1/r_max, r_max) and d =
    clip((μ_B − μ) / σ, −d_max, d_max) held constant in the backward pass; μ, σ are the running averages before this
    batch. Without ``reference`` it is batch norm.

    Args:
        cells: moments per cell, (N, C).
        p: ``weight``, ``bias``, ``eps``, ``population``, ``reference`` and ``limits`` are read.

    Returns:
        The map.

    Example:
        >>> cells, stored = Moments(torch.ones(1, 1), torch.ones(1, 1)), Moments(torch.zeros(1, 1), torch.ones(1, 1))
        >>> batch_renorm(cells, Inputs(eps=0.0, reference=stored)).shift
        tensor([[1.]])
    """
    m = _batch_moments(cells, p)
    center, scale, shift = standardize(m, p)
    if p.reference is None or p.population is not None:
        return Affine(center, scale, shift)
    limits: tuple[Any, Any] = p.limits
    r_max, d_max = limits
    inverse = torch.rsqrt(p.reference.var + p.eps)
    r = (torch.sqrt(m.var + p.eps) * inverse).detach().clamp(1 / r_max, r_max)
    d = ((m.mean - p.reference.mean) * inverse).detach().clamp(-d_max, d_max)
    return Affine(center, scale * r, shift + (d if p.weight is None else d * p.weight.to(d.dtype)))


def ghost_batch(cells: Moments, p: Inputs) -> Affine:
    """Ghost batch normalization (Hoffer et al. 2017, arXiv 1705.08741): batch norm over parts of the batch.

    Formula: batch norm's, within each run of about ``ghost_size`` consecutive samples. The batch is cut into
    max(1, N // ghost_size) runs whose sizes differ by at most one, so none is smaller than asked unless the batch is.

    Args:
        cells: moments per cell, (N, C).
        p: ``weight``, ``bias``, ``eps``, ``population`` and ``ghost_size`` are read.

    Returns:
        The map.

    Example:
        >>> cells = Moments(torch.tensor([[0.0], [2.0], [5.0], [7.0]]), torch.zeros(4, 1))
        >>> ghost_batch(cells, Inputs(ghost_size=2)).center.ravel()
        tensor([1., 1., 6., 6.])
    """
    if p.population is not None:
        return standardize(p.population, p)
    runs = [(run.mean.shape[0], pool(run, 0)) for run in _ghosts(cells, p)]
    mean = torch.cat([m.mean.expand(n, -1) for n, m in runs])
    var = torch.cat([m.var.expand(n, -1) for n, m in runs])
    return standardize(Moments(mean, var), p)


def _ghosts(cells: Moments, p: Inputs) -> list[Moments]:
    """The batch in runs of samples."""
    # torch.jit.trace has tensors in the place of sizes: of this one it takes the number.
    parts = max(1, int(cells.mean.shape[0]) // p.ghost_size)
    means, variances = cells.mean.tensor_split(parts), cells.var.tensor_split(parts)
    if not isinstance(cells.elements, Tensor):
        return [Moments(mean, var, cells.elements) for mean, var in zip(means, variances, strict=True)]
    counts = cells.elements.expand_as(cells.mean).tensor_split(parts)
    return [Moments(*run) for run in zip(means, variances, counts, strict=True)]


def _track_ghosts(cells: Moments, p: Inputs) -> Moments:
    # The mean over ghosts of each one's own moments: the spread between ghosts does not enter, as in the paper.
    runs = [pool(run, 0) for run in _ghosts(cells, p)]
    counts = [torch.as_tensor(run.elements, device=cells.mean.device).expand_as(run.mean) for run in runs]
    return _mean_over_samples(Moments(*(torch.cat(t) for t in ([m.mean for m in runs], [m.var for m in runs], counts))))


def mean_only_batch(cells: Moments, p: Inputs) -> Affine:
    """Mean-only batch normalization (Salimans & Kingma 2016, arXiv 1602.07868, section 4).

    Formula: y = weight · (x − μ[c]) + bias.

    Args:
        cells: moments per cell, (N, C).
        p: ``weight``, ``bias`` and ``population`` are read.

    Returns:
        The map.

    Example:
        >>> mean_only_batch(Moments(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)), Inputs())
        Affine(center=tensor([[2.]]), scale=tensor([[1.]]), shift=tensor([[0.]]))
    """
    return standardize(_batch_moments(cells, p), p._replace(parts="mean"))


def batch_instance(cells: Moments, p: Inputs) -> Affine:
    """Batch-instance normalization (Nam & Kim 2018, arXiv 1805.07925): a gate per channel between the two results.

    Formula: y = weight · (ρ · x̂_B + (1 − ρ) · x̂_I) + bias, with the gate ρ = ``extra`` in [0, 1]. That is affine in x:
    scale s = ρ/σ_B + (1 − ρ)/σ_I and center (μ_B · ρ/σ_B + μ_I · (1 − ρ)/σ_I) / s.

    Args:
        cells: moments per cell, (N, C).
        p: ``weight``, ``bias``, ``eps``, ``population`` and ``extra`` are read; without ``extra`` it is batch norm.

    Returns:
        The map.

    Example:
        >>> cells = Moments(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1))
        >>> batch_instance(cells, Inputs(extra=torch.zeros(1))).center.ravel()
        tensor([1., 3.])
    """
    m = _batch_moments(cells, p)
    if p.extra is None:
        return standardize(m, p)
    gate = p.extra.to(m.mean.dtype)
    of_batch = gate * torch.rsqrt(m.var + p.eps)
    of_instance = (1 - gate) * torch.rsqrt(cells.var + p.eps)
    scale = of_batch + of_instance
    # As a step from the batch's mean, which loses less than the weighted sum of two large means; where both variances
    # overflowed all values come out as the bias.
    some = scale != 0
    center = torch.where(some, m.mean + of_instance / torch.where(some, scale, 1) * (cells.mean - m.mean), 0)
    unit = standardize(Moments(torch.zeros_like(center), torch.ones_like(scale)), p._replace(eps=0.0))
    return Affine(center, torch.where(some, unit.scale * scale, 0), unit.shift)


def filter_response(cells: Moments, p: Inputs) -> Affine:
    """Filter response normalization (Singh & Krishnan 2019, arXiv 1911.09737): by the root mean square of each cell.

    Formula: y = weight · x / √(mean(x²) + eps) + bias, with mean(x²) = σ² + μ². The thresholded activation that the
    paper pairs it with is the layer's.

    Args:
        cells: moments per cell, (N, C).
        p: ``weight``, ``bias`` and ``eps`` are read.

    Returns:
        The map.

    Example:
        >>> filter_response(Moments(torch.full((1, 1), 2.0), torch.zeros(1, 1)), Inputs(eps=0.0)).scale
        tensor([[0.5000]])
    """
    return standardize(cells, p._replace(parts="scale"))
