"""Scores of outputs against targets; higher is better."""

from __future__ import annotations

from torch import Tensor


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of samples whose largest output is that of their class.

    Args:
        outputs: (N, K, ...) scores per class.
        targets: (N, ...) class numbers.

    Returns:
        A number from 0 to 1.

    Example:
        >>> import torch
        >>> accuracy(torch.eye(3), torch.tensor([0, 1, 0]))
        0.666...
    """
    return (outputs.argmax(1) == targets).double().mean().item()


def r_squared(outputs: Tensor, targets: Tensor) -> float:
    """The share of the targets' variance that is explained, R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)², not below 0.

    Args:
        outputs: of the targets' shape.
        targets: real values.

    Returns:
        A number from 0 to 1.

    Example:
        >>> import torch
        >>> r_squared(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        1.0
    """
    outputs, targets = outputs.double(), targets.double()
    spread = (targets - targets.mean(0)).square().sum()
    return (1 - (targets - outputs).square().sum() / spread.clamp_min(1e-300)).clamp_min(0).item()
