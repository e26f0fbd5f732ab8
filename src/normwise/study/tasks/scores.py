"""Losses and scores of outputs against targets; scores are higher where a model is better."""

from __future__ import annotations

import torch
from torch import Tensor


def by_class(outputs: Tensor, targets: Tensor) -> Tensor:
    """Put the classes on axis 1, where torch's losses want them.

    Args:
        outputs: (N, K, ...) scores per class, or (N, ..., K) where the targets' shape says so.
        targets: (N, ...) class numbers.

    Returns:
        (N, K, ...). Where both readings fit, the outputs are left as they are.

    Example:
        >>> by_class(torch.zeros(2, 7, 30), torch.zeros(2, 7)).shape
        torch.Size([2, 30, 7])
    """
    first = outputs.shape[:1] + outputs.shape[2:] == targets.shape
    return outputs.movedim(-1, 1) if not first and outputs.shape[:-1] == targets.shape else outputs


def class_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, with the classes on axis 1 or on the last.

    Args:
        outputs: scores per class; see :func:`by_class`.
        targets: (N, ...) class numbers.

    Returns:
        A scalar.

    Example:
        >>> class_loss(torch.zeros(2, 7, 30), torch.zeros(2, 7, dtype=torch.long))
        tensor(3.4012)
    """
    return torch.nn.functional.cross_entropy(by_class(outputs, targets), targets)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of targets whose largest output is that of their class.

    Args:
        outputs: scores per class; see :func:`by_class`.
        targets: (N, ...) class numbers.

    Returns:
        A number from 0 to 1.

    Example:
        >>> accuracy(torch.eye(3), torch.tensor([0, 1, 0]))
        0.666...
    """
    return (by_class(outputs, targets).argmax(1) == targets).double().mean().item()


def r_squared(outputs: Tensor, targets: Tensor) -> float:
    """The share of the targets' variance that is explained, R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)², not below 0.

    Args:
        outputs: of the targets' shape.
        targets: real values.

    Returns:
        A number from 0 to 1.

    Example:
        >>> r_squared(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        1.0
    """
    outputs, targets = outputs.double(), targets.double()
    spread = (targets - targets.mean(0)).square().sum()
    return (1 - (targets - outputs).square().sum() / spread.clamp_min(1e-300)).clamp_min(0).item()


def mean_iou(outputs: Tensor, targets: Tensor) -> float:
    """Intersection over union of predicted and true places, averaged over the classes that occur in either.

    Args:
        outputs: scores per class; see :func:`by_class`.
        targets: (N, ...) class numbers; negative ones are not counted.

    Returns:
        A number from 0 to 1.

    Example:
        >>> import torch
        >>> round(mean_iou(torch.eye(3), torch.tensor([0, 1, 1])), 3)
        0.5
    """
    scores = by_class(outputs, targets)
    predicted, classes = scores.argmax(1), scores.shape[1]
    counted = targets >= 0
    predicted, targets = predicted[counted], targets[counted]
    both = targets[predicted == targets].bincount(minlength=classes).double()
    either = predicted.bincount(minlength=classes) + targets.bincount(minlength=classes) - both
    return (both[either > 0] / either[either > 0]).mean().item()


# Scores of outputs against targets that have a name, and what reports call them.
METRICS = {"accuracy": (accuracy, "accuracy"), "mean_iou": (mean_iou, "mean IoU"), "r_squared": (r_squared, "R²")}
