"""Layers of the methods for tokens that torch has none for. ``LayerNorm`` and ``RMSNorm`` stand in ``layernorm``."""

from __future__ import annotations

from typing import Any

import torch

from normwise import methods
from normwise.nn._eps import eps_of
from normwise.nn.norm import Norm


class TokenNorm(Norm):
    """What the layers of this module share: how they print."""

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        options = str(self.method).partition("(")[2].rstrip(")")
        eps = f"eps={eps_of(self)}" if self.method.pools else ""
        return ", ".join(filter(None, (str(self.num_features), options, eps, f"affine={self.affine}")))


class L2Norm(TokenNorm):
    """Each position to a vector of length 1 (Henry et al. 2020, arXiv 2010.04245); see :class:`normwise.methods.L2`.

    Formula: y = weight · x / √(Σ x² + eps) + bias.

    Args:
        num_features: C.
        **options: as for :class:`Norm`; the channels are found at axis 1 or at the last axis by the input's shape.

    Example:
        >>> L2Norm(2, eps=0.0, affine=False)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(self, num_features: int, **options: Any) -> None:
        super().__init__(methods.L2(), num_features, **options)


class DyT(TokenNorm):
    """Dynamic tanh (Zhu et al. 2025, arXiv 2503.10622), in the place of a normalization.

    Formula: y = weight · tanh(alpha · x) + bias, with a learned ``alpha`` (1,). In large models the paper starts it
    lower than at 0.5, and higher in attention than elsewhere.

    Args:
        num_features: C.
        alpha: where ``alpha`` starts.
        **options: as for :class:`Norm`; the channels are found at axis 1 or at the last axis by the input's shape.

    Example:
        >>> DyT(2)(torch.tensor([[1.0, -2.0]]))
        tensor([[ 0.4621, -0.7616]], grad_fn=<...>)
    """

    alpha: torch.nn.Parameter

    def __init__(self, num_features: int, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(methods.DyT(alpha), num_features, **options)


class Derf(TokenNorm):
    """Dynamic erf (Chen et al. 2025, arXiv 2512.10938), in the place of a normalization.

    Formula: y = weight · erf(alpha · x + shift) + bias, with learned ``alpha`` (1,) and ``shift`` (1,).

    Args:
        num_features: C.
        alpha: where ``alpha`` starts.
        shift: where ``shift`` starts.
        **options: as for :class:`Norm`; the channels are found at axis 1 or at the last axis by the input's shape.

    Example:
        >>> Derf(2)(torch.tensor([[1.0, -2.0]]))
        tensor([[ 0.5205, -0.8427]], grad_fn=<...>)
    """

    alpha: torch.nn.Parameter
    shift: torch.nn.Parameter

    def __init__(self, num_features: int, alpha: float = 0.5, shift: float = 0.0, **options: Any) -> None:
        super().__init__(methods.Derf(alpha, shift), num_features, **options)
