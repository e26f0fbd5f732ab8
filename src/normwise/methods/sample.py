"""Methods within a sample: instance, layer and group normalization, and relatives."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from normwise.core.formula import Context, batch_moments, mean_over_samples, with_parameters
from normwise.core.method import Learned, Method, Mix, Pooled
from normwise.core.moments import Affine, Moments


@dataclass(frozen=True)
class Layer(Pooled):
    """Layer normalization (Ba et al. 2016, arXiv 1607.06450): over all channels of a sample, or of a token.

    Formula: y = weight · (x − μ) / √(σ² + eps) + bias, weight and bias per channel. Where the channels stand at axis 1,
    as in convolutional maps, μ and σ² are those of a sample: group norm with one group. Where they come last, as in
    transformers, those of each position: ``torch.nn.LayerNorm(C)``.

    Args:
        parts: as of :func:`standardize`.
        per_token: normalize each position by itself, wherever the channels stand; or ``False`` for the whole sample.

    Example:
        >>> Layer().affine(Moments(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2)), Context(eps=0.0)).center
        tensor([[1.]])
    """

    parts: str = field(default="both", kw_only=True)
    per_token: bool | None = field(default=None, kw_only=True)  # type: ignore[misc]

    summary = "per sample or token over all channels; the batch does not matter"
    paper = "Ba et al. 2016, arXiv 1607.06450"
    pools = ("layer",)


@dataclass(frozen=True)
class Group(Pooled):
    """Group normalization (Wu & He 2018, arXiv 1803.08494): over the channels of a group, per sample.

    Formula: y = weight · (x − μ[n,g]) / √(σ²[n,g] + eps) + bias, g = c // (C / num_groups). Without ``num_groups``
    :func:`groups_for` chooses.

    Example:
        >>> Group(1).affine(Moments(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2)), Context(eps=1.0)).center
        tensor([[1.]])
    """

    num_groups: int | None = None
    parts: str = field(default="both", kw_only=True)

    summary = "per sample over groups of channels; holds at small batches"
    paper = "Wu & He 2018, arXiv 1803.08494"
    pools = ("group",)


@dataclass(frozen=True)
class Instance(Pooled):
    """Instance normalization (Ulyanov et al. 2016, arXiv 1607.08022): each cell by its own moments.

    Formula: y = weight · (x − μ[n,c]) / √(σ²[n,c] + eps) + bias. Tracked statistics are used in evaluation instead,
    which makes it a batch norm, as in torch.

    Example:
        >>> Instance().affine(Moments(torch.ones(1, 1), torch.ones(1, 1)), Context(eps=0.0)).center
        tensor([[1.]])
    """

    parts: str = field(default="both", kw_only=True)

    summary = "per sample and channel; removes contrast"
    paper = "Ulyanov et al. 2016, arXiv 1607.08022"
    pools = ("instance",)
    tracks = True

    def reads_cells(self, stored: bool) -> bool:  # noqa: D102
        return not stored

    def mix(self, stored: bool) -> Mix | None:  # noqa: D102
        mix = super().mix(stored)
        return Mix(("batch",)) if mix is not None and stored else mix  # a population stands in the batch's place

    def pooled(self, name: str, cells: Moments, given: Context) -> Moments:  # noqa: D102
        return cells if given.population is None else given.population

    def track(self, cells: Moments, given: Context) -> Moments:
        """Torch's convention: the mean over samples of each one's own moments, not the moments of the whole batch."""
        return mean_over_samples(cells)


@dataclass(frozen=True)
class FilterResponse(Pooled):
    """Filter response normalization (Singh & Krishnan 2019, arXiv 1911.09737): by the root mean square of each cell.

    Formula: y = weight · x / √(mean(x²) + eps) + bias, with mean(x²) = σ² + μ². The thresholded activation that the
    paper pairs it with is the layer's.

    Example:
        >>> FilterResponse().affine(Moments(torch.full((1, 1), 2.0), torch.zeros(1, 1)), Context(eps=0.0)).scale
        tensor([[0.5000]])
    """

    summary = "per sample and channel by the root mean square, without a mean"
    paper = "Singh & Krishnan 2019, arXiv 1911.09737"
    pools = ("instance",)
    parts = "scale"


@dataclass(frozen=True)
class BatchInstance(Method):
    """Batch-instance normalization (Nam & Kim 2018, arXiv 1805.07925): a gate per channel between the two results.

    Formula: y = weight · (ρ · x̂_B + (1 − ρ) · x̂_I) + bias, with a learned gate ρ in [0, 1]. That is affine in x:
    scale s = ρ/σ_B + (1 − ρ)/σ_I and center (μ_B · ρ/σ_B + μ_I · (1 − ρ)/σ_I) / s.

    Example:
        >>> cells = Moments(torch.tensor([[1.0], [3.0]]), torch.ones(2, 1))
        >>> BatchInstance().affine(cells, Context(), gate=torch.zeros(1)).center.ravel()
        tensor([1., 3.])
    """

    summary = "each channel learns how much contrast to remove"
    paper = "Nam & Kim 2018, arXiv 1805.07925"
    pools = ("batch", "instance")
    learned = {"gate": Learned(start=1.0, within=(0.0, 1.0))}  # noqa: RUF012 - nobody changes it
    rests_on = "instance"

    def affine(self, cells: Moments, given: Context, gate: Tensor) -> Affine:
        """Mix the two maps."""
        m = batch_moments(cells, given)
        gate = gate.to(m.mean.dtype)
        of_batch = gate * torch.rsqrt(m.var + given.eps)
        of_instance = (1 - gate) * torch.rsqrt(cells.var + given.eps)
        scale = of_batch + of_instance
        # As a step from the batch's mean, which loses less than the weighted sum of two large means; where both
        # variances overflowed all values come out as the bias.
        some = scale != 0
        center = torch.where(some, m.mean + of_instance / torch.where(some, scale, 1) * (cells.mean - m.mean), 0)
        center, scale, shift = with_parameters(center, scale, given)
        return Affine(center, torch.where(some, scale, 0), shift)
