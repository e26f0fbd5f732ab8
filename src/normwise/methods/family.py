"""The methods that the comparison is about: none, batch, instance, layer, group and switchable normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normwise.core.moments import Affine, Moments, mix, pool, pool_groups, unbiased
from normwise.errors import InputError


class Inputs(NamedTuple):
    """All that a method may draw on besides the moments. One signature serves every method; each reads what it needs.

    ``weight`` and ``bias`` are (C,), or (N, C) to differ between samples. ``population`` stands in for the batch's own
    moments (the running averages in evaluation). ``over``, ``mean_weight``, ``var_weight`` (K,) and ``variance`` belong
    to the switchable mix; ``logits=False`` says that the weights are shares that sum to 1 already (sparse mixes), and
    not logits of a softmax. ``mask`` marks the elements that count, broadcastable to the input; ``None`` counts all.
    ``exchange`` takes moments pooled over this process's samples to those over the samples of all processes.

    ``parts`` says what of the moments is used: ``"both"``, only the ``"mean"`` (subtracted), or only the ``"scale"``
    (divided by, about 0: the root mean square). For the relatives: ``extra`` is one more learned tensor, such as the
    (C,) gate of batch-instance normalization; ``reference`` are the running averages as they stand in training, and
    ``limits`` how far batch renormalization follows them (r_max, d_max); ``ghost_size`` counts samples.

    Example:
        >>> Inputs().eps
        1e-05
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    num_groups: int = 1
    population: Moments | None = None
    over: tuple[str, ...] = ("instance", "layer", "batch")
    mean_weight: Tensor | None = None
    var_weight: Tensor | None = None
    variance: str = "paper"
    mask: Tensor | None = None
    logits: bool = True
    exchange: Callable[[Moments], Moments] | None = None
    parts: str = "both"
    extra: Tensor | None = None
    reference: Moments | None = None
    limits: tuple[float | Tensor, float | Tensor] = (3.0, 5.0)
    ghost_size: int = 32


def standardize(m: Moments, p: Inputs) -> Affine:
    """The affine map to mean ``bias`` and standard deviation ``weight``: scale = weight / √(σ² + eps).

    With ``parts="mean"`` only the mean moves, y = weight · (x − μ) + bias; with ``parts="scale"`` only the scale,
    y = weight · x / √(σ² + μ² + eps) + bias. Where the variance is beyond what its type holds the scale is 0.

    Args:
        m: the moments to normalize by.
        p: ``weight``, ``bias``, ``eps`` and ``parts`` are read.

    Returns:
        The map.

    Example:
        >>> standardize(Moments(torch.ones(1, 1), torch.full((1, 1), 4.0)), Inputs(eps=0.0)).scale
        tensor([[0.5000]])
    """
    center = torch.zeros_like(m.mean) if p.parts == "scale" else m.mean
    square = m.var + m.mean.square() if p.parts == "scale" else m.var
    scale = torch.ones_like(square) if p.parts == "mean" else torch.rsqrt(square + p.eps)
    if p.weight is not None:
        scale = scale * p.weight.to(scale.dtype)
    if p.parts != "mean":
        # Where the variance overflowed all values come out as the bias, as in torch, with no inf · 0 on the way.
        overflowed = torch.isinf(square)
        center, scale = torch.where(overflowed, 0, center), torch.where(overflowed, 0, scale)
    return Affine(
        center, scale, torch.zeros_like(scale) if p.bias is None else torch.atleast_2d(p.bias.to(scale.dtype))
    )


def _instance_moments(cells: Moments, p: Inputs) -> Moments:
    return cells


def _layer_moments(cells: Moments, p: Inputs) -> Moments:
    return pool(cells, 1)


def _group_moments(cells: Moments, p: Inputs) -> Moments:
    return pool_groups(cells, p.num_groups)


def _batch_moments(cells: Moments, p: Inputs) -> Moments:
    if p.population is not None:
        return p.population
    own = pool(cells, 0)
    return own if p.exchange is None else p.exchange(own)


POOLS: dict[str, Callable[[Moments, Inputs], Moments]] = {
    "instance": _instance_moments,
    "layer": _layer_moments,
    "group": _group_moments,
    "batch": _batch_moments,
}


# What a method may use of the moments, and the two ways to take variances of a switchable mix.
PARTS = ("both", "mean", "scale")
VARIANCES = ("paper", "official")


def known_members(over: str | Sequence[str]) -> tuple[str, ...]:
    """Check the members of a switchable mix.

    Args:
        over: names of pools, or one name.

    Returns:
        The names.

    Raises:
        InputError: none, a repeated or an unknown one.

    Example:
        >>> known_members(["layer", "batch"])
        ('layer', 'batch')
    """
    members = (over,) if isinstance(over, str) else tuple(over)
    unknown = [name for name in members if name not in POOLS]
    if unknown or not members or len(set(members)) < len(members):
        raise InputError(f"over={over!r}: expected one or more different members of {', '.join(POOLS)}")
    return members


def known_variance(variance: str) -> str:
    """Check the name of a way to take variances.

    Args:
        variance: ``"paper"`` or ``"official"``.

    Returns:
        The name.

    Raises:
        InputError: another one.

    Example:
        >>> known_variance("paper")
        'paper'
    """
    if variance not in VARIANCES:
        raise InputError(f"unknown variance {variance!r}: expected one of {', '.join(VARIANCES)}")
    return variance


def none(cells: Moments, p: Inputs) -> Affine:
    """No normalization: ``y = x · weight + bias``.

    Args:
        cells: moments per cell; only their dtype and device are read.
        p: ``weight`` and ``bias`` are read.

    Returns:
        The map.

    Example:
        >>> none(Moments(torch.ones(1, 1), torch.ones(1, 1)), Inputs())
        Affine(center=tensor([[0.]]), scale=tensor([[1.]]), shift=tensor([[0.]]))
    """
    zero = cells.mean.new_zeros(1, 1)
    one = torch.ones_like(zero)
    return Affine(
        zero,
        one if p.weight is None else torch.atleast_2d(p.weight.to(one.dtype)),
        zero if p.bias is None else torch.atleast_2d(p.bias.to(one.dtype)),
    )


def instance(cells: Moments, p: Inputs) -> Affine:
    """Instance normalization (Ulyanov et al. 2016, arXiv 1607.08022): each cell by its own moments.

    Formula: y = weight · (x − μ[n,c]) / √(σ²[n,c] + eps) + bias. With ``population`` (tracked statistics in evaluation)
    that is used instead, which makes the layer a batch norm, as in torch.

    Args:
        cells: moments per cell, (N, C).
        p: ``weight``, ``bias``, ``eps`` and ``population`` are read.

    Returns:
        The map.

    Example:
        >>> instance(Moments(torch.ones(1, 1), torch.ones(1, 1)), Inputs(eps=0.0)).center
        tensor([[1.]])
    """
    return standardize(cells if p.population is None else p.population, p)


def layer(cells: Moments, p: Inputs) -> Affine:
    """Layer normalization of a convolutional map (Ba et al. 2016, arXiv 1607.06450): over all channels of a sample.

    Formula: y = weight · (x − μ[n]) / √(σ²[n] + eps) + bias, weight and bias per channel: group norm with one group.

    Args:
        cells: moments per cell, (N, C).
        p: ``weight``, ``bias`` and ``eps`` are read.

    Returns:
        The map.

    Example:
        >>> layer(Moments(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2)), Inputs(eps=0.0)).center
        tensor([[1.]])
    """
    return standardize(_layer_moments(cells, p), p)


def group(cells: Moments, p: Inputs) -> Affine:
    """Group normalization (Wu & He 2018, arXiv 1803.08494): over the channels of a group, per sample.

    Formula: y = weight · (x − μ[n,g]) / √(σ²[n,g] + eps) + bias, g = c // (C / num_groups).

    Args:
        cells: moments per cell, (N, C).
        p: ``weight``, ``bias``, ``eps`` and ``num_groups`` are read.

    Returns:
        The map.

    Example:
        >>> group(Moments(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2)), Inputs(eps=1.0, num_groups=1)).center
        tensor([[1.]])
    """
    return standardize(_group_moments(cells, p), p)


def batch(cells: Moments, p: Inputs) -> Affine:
    """Batch normalization (Ioffe & Szegedy 2015, arXiv 1502.03167): over the samples, per channel.

    Formula: y = weight · (x − μ[c]) / √(σ²[c] + eps) + bias, with the batch's moments, or ``population`` where given.

    Args:
        cells: moments per cell, (N, C).
        p: ``weight``, ``bias``, ``eps`` and ``population`` are read.

    Returns:
        The map.

    Example:
        >>> batch(Moments(torch.tensor([[0.0], [2.0]]), torch.zeros(2, 1)), Inputs(eps=0.0)).center
        tensor([[1.]])
    """
    return standardize(_batch_moments(cells, p), p)


def switchable(cells: Moments, p: Inputs) -> Affine:
    """Switchable normalization (Luo et al. 2019, arXiv 1806.10779): a learned mix of other methods' moments.

    Formula: y = weight · (x − Σₖ wₖ μₖ) / √(Σₖ w′ₖ σ²ₖ + eps) + bias, w = softmax(mean_weight), w′ =
    softmax(var_weight), k ∈ ``over``; with ``logits=False`` w and w′ are the given vectors themselves.
    ``variance="paper"`` takes biased variances; ``"official"`` makes the instance variance unbiased and lets that value
    feed the others, as published checkpoints expect.

    Args:
        cells: moments per cell, (N, C).
        p: everything is read.

    Returns:
        The map.

    Raises:
        InputError: every member would rest on a single element.

    Example:
        >>> cells = Moments(torch.tensor([[0.0, 2.0]]), torch.ones(1, 2), elements=4)
        >>> p = Inputs(over=("instance", "layer"), mean_weight=torch.ones(2), var_weight=torch.ones(2))
        >>> switchable(cells, p).center
        tensor([[0.5000, 1.5000]])
    """
    N, C = cells.mean.shape
    kept = defined_members(p, N, C, cells.elements)
    if not kept:
        raise InputError(
            f"switchable normalization over {', '.join(p.over)}: with {N} sample(s), {C} channel(s) and one element a "
            "channel every member would rest on a single value, whose variance is 0. Give larger inputs or batches, or "
            "call .eval() to use the running averages of the batch member"
        )
    cells = _member_cells(cells, p)
    members = [POOLS[p.over[k]](cells, p) for k in kept]
    shares = (_shares(weights, p.logits, kept, cells) for weights in (p.mean_weight, p.var_weight))
    return standardize(mix(members, *shares), p)


def _member_cells(cells: Moments, p: Inputs) -> Moments:
    """The cells' moments as the members of a mix take them."""
    return Moments(cells.mean, unbiased(cells), cells.elements) if p.variance == "official" else cells


def _shares(weights: Tensor | None, logits: bool, kept: list[int], cells: Moments) -> Tensor:
    """The shares of the members that are kept, summing to 1; equal shares without weights."""
    if weights is None:
        return cells.mean.new_full((len(kept),), 1 / len(kept))
    dropped = len(kept) < len(weights)
    weights = weights.to(cells.mean.dtype)
    weights = weights[kept] if dropped else weights
    if logits:
        return torch.softmax(weights, 0)
    if not dropped:
        return weights
    total = weights.sum()
    # A mix whose whole share lay on members that have no meaning here has no preference among the rest.
    return torch.where(total > 0, weights, 1) / torch.where(total > 0, total, len(kept))


def defined_members(p: Inputs, samples: int, channels: int, elements: int | Tensor) -> list[int]:
    """Which members of a switchable mix have a meaning: those whose statistics rest on more than one element.

    Args:
        p: ``over``, ``num_groups`` and ``population`` are read.
        samples: N.
        channels: C.
        elements: per cell; where cells differ in size all members are taken as defined.

    Returns:
        The positions of the defined members in ``over``.

    Example:
        >>> defined_members(Inputs(over=("instance", "layer", "batch")), samples=8, channels=4, elements=1)
        [1, 2]
    """
    if isinstance(elements, Tensor) or samples == 0:
        return list(range(len(p.over)))
    behind = elements_behind(p, samples, channels, elements)
    return [k for k, name in enumerate(p.over) if behind[name] != 1]


def elements_behind(p: Inputs, samples: int, channels: int, elements: int) -> dict[str, int]:
    """How many elements each pool's statistic rests on; 0 where that is not for this input to say.

    That is so for stored moments, and for a batch that is shared with other processes.

    Args:
        p: ``num_groups``, ``population`` and ``exchange`` are read.
        samples: N.
        channels: C.
        elements: per cell.

    Returns:
        Pool → number of elements.

    Example:
        >>> elements_behind(Inputs(num_groups=2), samples=8, channels=4, elements=9)
        {'instance': 9, 'layer': 36, 'group': 18, 'batch': 72}
    """
    return {
        "instance": elements,
        "layer": channels * elements,
        "group": channels // p.num_groups * elements,
        "batch": samples * elements if p.population is None and p.exchange is None else 0,
    }


def _track_batch(cells: Moments, p: Inputs) -> Moments:
    return _batch_moments(cells, p)


def _track_switchable(cells: Moments, p: Inputs) -> Moments:
    batch = _batch_moments(_member_cells(cells, p), p)
    if p.variance == "paper":
        return batch
    # The published module averages its batch variance as it is, so what makes variances unbiased is taken back.
    correction = unbiased(batch._replace(var=torch.ones_like(batch.var)))
    return batch._replace(var=batch.var / correction.clamp_min(1))


def _track_instance(cells: Moments, p: Inputs) -> Moments:
    # torch's convention: the mean over samples of each instance's own moments, not the moments of the whole batch.
    if not isinstance(cells.elements, Tensor):
        return Moments(cells.mean.mean(0, keepdim=True), cells.var.mean(0, keepdim=True), cells.elements)
    return _mean_over_samples(cells)


def _mean_over_samples(m: Moments) -> Moments:
    """The mean over rows of each one's own moments, unbiased by its own count; rows of one element have no variance."""
    assert isinstance(m.elements, Tensor)
    some = m.elements > 1
    share = some.to(m.mean.dtype) / some.sum(0, keepdim=True).clamp_min(1).to(m.mean.dtype)
    mean, var = ((share * t).sum(0, keepdim=True) for t in (m.mean, unbiased(m)))
    total = torch.where(some, m.elements, 0).sum(0, keepdim=True)
    # Biased by the total, as moments are: it comes off again where the variance enters the running averages.
    return Moments(mean, var - var / total.clamp_min(1).to(var.dtype), total)
