"""What the functions of methods are written with: their context, the pools, and the map to a mean and a deviation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from normwise.core.moments import Affine, Moments, pool, pool_groups, unbiased


class Context(NamedTuple):
    """What a method may draw on besides the moments and its learned tensors.

    ``weight`` and ``bias`` are (C,), or (N, C) to differ between samples. ``population`` stands in for the batch's own
    moments (the running averages in evaluation); ``reference`` are the running averages as they stand in training, for
    methods that read them. ``exchange`` takes moments pooled over this process's samples to those of all processes.

    Example:
        >>> Context().eps
        1e-05
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    population: Moments | None = None
    reference: Moments | None = None
    exchange: Callable[[Moments], Moments] | None = None


def batch_moments(cells: Moments, given: Context) -> Moments:
    """The moments of the batch, per channel: of all processes that share it, or the population in its place.

    Args:
        cells: moments per cell, (N, C).
        given: ``population`` and ``exchange`` are read.

    Returns:
        Moments (1, C).

    Example:
        >>> batch_moments(Moments(torch.tensor([[0.0], [2.0]]), torch.zeros(2, 1)), Context()).mean
        tensor([[1.]])
    """
    if given.population is not None:
        return given.population
    own = pool(cells, 0)
    return own if given.exchange is None else given.exchange(own)


POOLS: dict[str, Callable[[Moments, Context, int], Moments]] = {
    "instance": lambda cells, given, groups: cells,
    "layer": lambda cells, given, groups: pool(cells, 1),
    "group": lambda cells, given, groups: pool_groups(cells, groups),
    "batch": lambda cells, given, groups: batch_moments(cells, given),
}


def with_parameters(center: Tensor, scale: Tensor, given: Context) -> Affine:
    """The map ``y = (x − center) · scale · weight + bias``.

    Args:
        center: broadcastable to (N, C).
        scale: broadcastable to (N, C).
        given: ``weight`` and ``bias`` are read.

    Returns:
        The map.

    Example:
        >>> with_parameters(torch.zeros(1, 2), torch.ones(1, 2), Context(weight=torch.tensor([2.0, 3.0]))).scale
        tensor([[2., 3.]])
    """
    if given.weight is not None:
        scale = scale * given.weight.to(scale.dtype)
    shift = torch.zeros_like(scale) if given.bias is None else torch.atleast_2d(given.bias.to(scale.dtype))
    return Affine(center, scale, shift)


# What of the moments is used: both, only the mean (subtracted), or only the scale (divided by, about 0).
PARTS = ("both", "mean", "scale")


def standardize(m: Moments, given: Context, parts: str = "both") -> Affine:
    """The affine map to mean ``bias`` and standard deviation ``weight``: scale = weight / √(σ² + eps).

    With ``parts="mean"`` only the mean moves, y = weight · (x − μ) + bias; with ``parts="scale"`` only the scale,
    y = weight · x / √(σ² + μ² + eps) + bias. Where the variance is beyond what its type holds the scale is 0.

    Args:
        m: the moments to normalize by.
        given: ``weight``, ``bias`` and ``eps`` are read.
        parts: ``"both"``, ``"mean"`` or ``"scale"``.

    Returns:
        The map.

    Example:
        >>> standardize(Moments(torch.ones(1, 1), torch.full((1, 1), 4.0)), Context(eps=0.0)).scale
        tensor([[0.5000]])
    """
    if parts == "mean":
        return with_parameters(m.mean, torch.ones_like(m.var), given)
    center = torch.zeros_like(m.mean) if parts == "scale" else m.mean
    square = m.var + m.mean.square() if parts == "scale" else m.var
    center, scale, shift = with_parameters(center, torch.rsqrt(square + given.eps), given)
    # Where the variance overflowed all values come out as the bias, as in torch, with no inf · 0 on the way.
    overflowed = torch.isinf(square)
    return Affine(torch.where(overflowed, 0, center), torch.where(overflowed, 0, scale), shift)


def mean_over_samples(m: Moments) -> Moments:
    """The mean over rows of each one's own moments, unbiased by its own count; rows of one element have no variance."""
    if not isinstance(m.elements, Tensor):
        return Moments(m.mean.mean(0, keepdim=True), m.var.mean(0, keepdim=True), m.elements)
    some = m.elements > 1
    share = some.to(m.mean.dtype) / some.sum(0, keepdim=True).clamp_min(1).to(m.mean.dtype)
    mean, var = ((share * t).sum(0, keepdim=True) for t in (m.mean, unbiased(m)))
    total = torch.where(some, m.elements, 0).sum(0, keepdim=True)
    # Biased by the total, as moments are: it comes off again where the variance enters the running averages.
    return Moments(mean, var - var / total.clamp_min(1).to(var.dtype), total)
