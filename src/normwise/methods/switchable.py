"""Switchable normalization: a learned mix of the other methods' moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normwise.core.formula import POOLS, Context, standardize
from normwise.core.method import Learned, Method, Mix
from normwise.core.moments import Affine, Moments, mix, unbiased
from normwise.errors import InputError
from normwise.pools import elements_behind

# The two ways to take variances.
VARIANCES = ("paper", "official")


@dataclass(frozen=True)
class Switchable(Method):
    """Switchable normalization (Luo et al. 2019, arXiv 1806.10779): a learned mix of other methods' moments.

    Formula: y = weight · (x − Σₖ wₖ μₖ) / √(Σₖ w′ₖ σ²ₖ + eps) + bias, w = softmax(mean_weight), w′ =
    softmax(var_weight), k ∈ ``over``; with ``logits=False`` w and w′ are the given vectors themselves.
    ``variance="paper"`` takes biased variances; ``"official"`` makes the instance variance unbiased and lets that value
    feed the others, as published checkpoints expect. A member that would rest on a single element is left out.

    Example:
        >>> cells, equal = Moments(torch.tensor([[0.0, 2.0]]), torch.ones(1, 2), elements=4), torch.ones(2)
        >>> Switchable(over=("instance", "layer")).affine(cells, Context(), equal, equal).center
        tensor([[0.5000, 1.5000]])
    """

    over: tuple[str, ...] = ("instance", "layer", "batch")
    variance: str = "paper"
    num_groups: int | None = None
    logits: bool = True

    summary = "each layer learns its own mix of instance, layer and batch"
    paper = "Luo et al. 2019, arXiv 1806.10779"
    rests_on = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "over", known_members(self.over))
        if self.variance not in VARIANCES:
            raise InputError(f"unknown variance {self.variance!r}: expected one of {', '.join(VARIANCES)}")

    @property
    def pools(self) -> tuple[str, ...]:  # type: ignore[override]
        """The members."""
        return self.over

    @property
    def learned(self) -> Mapping[str, Learned]:  # type: ignore[override]
        """Logits or shares of the members, equal at the start."""
        K = len(self.over)
        equal = Learned(1.0 if self.logits else 1 / K, size=K)
        return {"mean_weight": equal, "var_weight": equal}

    def mix(self, stored: bool) -> Mix | None:  # noqa: D102
        return Mix(self.over, self.logits) if self.variance == "paper" else None

    def affine(self, cells: Moments, given: Context, mean_weight: Tensor, var_weight: Tensor) -> Affine:
        """Standardize by the mix."""
        N, C = cells.mean.shape
        kept = self.defined(N, C, cells.elements, given.population is not None or given.exchange is not None)
        if not kept:
            raise InputError(
                f"switchable normalization over {', '.join(self.over)}: with {N} sample(s), {C} channel(s) and one "
                "element a channel every member would rest on a single value, whose variance is 0. Give larger inputs "
                "or batches, or call .eval() to use the running averages of the batch member"
            )
        cells = self._biased_or_not(cells)
        members = [self.pooled(self.over[k], cells, given) for k in kept]
        shares = (self._shares(weights.to(cells.mean.dtype), kept) for weights in (mean_weight, var_weight))
        return standardize(mix(members, *shares), given)

    def defined(self, samples: int, channels: int, elements: int | Tensor, batch_elsewhere: bool = False) -> list[int]:
        """Which members have a meaning: those whose statistics rest on more than one element.

        Args:
            samples: N.
            channels: C.
            elements: per cell; where cells differ in size all members are taken as defined.
            batch_elsewhere: as of :func:`elements_behind`.

        Returns:
            The positions of the defined members in ``over``.

        Example:
            >>> Switchable().defined(samples=8, channels=4, elements=1)
            [1, 2]
        """
        if isinstance(elements, Tensor) or samples == 0:
            return list(range(len(self.over)))
        behind = elements_behind(samples, channels, elements, self.groups(channels), batch_elsewhere)
        return [k for k, name in enumerate(self.over) if behind[name] != 1]

    def track(self, cells: Moments, given: Context) -> Moments:
        """The batch member's moments."""
        batch = super().track(self._biased_or_not(cells), given)
        if self.variance == "paper":
            return batch
        # The published module averages its batch variance as it is, so what makes variances unbiased is taken back.
        correction = unbiased(batch._replace(var=torch.ones_like(batch.var)))
        return batch._replace(var=batch.var / correction.clamp_min(1))

    def _biased_or_not(self, cells: Moments) -> Moments:
        """The cells' moments as the members take them."""
        return cells if self.variance == "paper" else Moments(cells.mean, unbiased(cells), cells.elements)

    def _shares(self, weights: Tensor, kept: list[int]) -> Tensor:
        """The shares of the members that are kept, summing to 1."""
        dropped = len(kept) < len(weights)
        weights = weights[kept] if dropped else weights
        if self.logits:
            return torch.softmax(weights, 0)
        if not dropped:
            return weights
        total = weights.sum()
        # A mix whose whole share lay on members that have no meaning here has no preference among the rest.
        return torch.where(total > 0, weights, 1) / torch.where(total > 0, total, len(kept))


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
