"""Methods that normalize no activations: none at all, and weight normalization."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from normwise.core.formula import Context, with_parameters
from normwise.core.method import Method
from normwise.core.moments import Affine, Moments


@dataclass(frozen=True)
class NoNorm(Method):
    """No normalization: ``y = x · weight + bias``.

    Example:
        >>> NoNorm().affine(Moments(torch.ones(1, 1), torch.ones(1, 1)), Context())
        Affine(center=tensor([[0.]]), scale=tensor([[1.]]), shift=tensor([[0.]]))
    """

    name = "none"
    summary = "no normalization"

    @property
    def only_affine(self) -> bool:  # type: ignore[override]
        """Where nothing bends it."""
        return self.curve is None

    def affine(self, cells: Moments, given: Context) -> Affine:
        """Scale and shift by what is learned alone."""
        zero = cells.mean.new_zeros(1, 1)
        return with_parameters(zero, torch.ones_like(zero), given)


@dataclass(frozen=True)
class WeightNorm(NoNorm):
    """Weight normalization (Salimans & Kingma 2016, arXiv 1602.07868): see :func:`normwise.weight_norm`.

    Example:
        >>> WeightNorm().on_weights
        True
    """

    name = "weight"
    summary = "weights split into length and direction; activations untouched"
    paper = "Salimans & Kingma 2016, arXiv 1602.07868"
    on_weights = True
