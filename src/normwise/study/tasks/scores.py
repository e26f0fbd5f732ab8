"""Losses and scores of outputs against targets; scores are higher where a model is better."""

from __future__ import annotations

from torch import Tensor, nn

from normwise.arguments.loss import aligned, by_class


def class_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, with the classes on axis 1 or on the last."""
    return nn.functional.cross_entropy(by_class(outputs, targets), targets)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of targets whose largest output is that of their class."""
    right: Tensor = by_class(outputs, targets).argmax(1) == targets
    return right.sum().item() / right.numel()


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of outputs that are :func:`aligned` with their targets."""
    return nn.functional.mse_loss(aligned(outputs, targets), targets)


def r_squared(outputs: Tensor, targets: Tensor) -> float:
    """The share of the targets' variance that is explained, R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²."""
    # On the CPU, as some devices have no float64.
    outputs, targets = aligned(outputs, targets).cpu().double(), targets.cpu().double()
    spread = (targets - targets.mean(0)).square().sum()
    return (1 - (targets - outputs).square().sum() / spread.clamp_min(1e-300)).item()


def mean_iou(outputs: Tensor, targets: Tensor) -> float:
    """Intersection over union of predicted and true places, averaged over the classes that occur in either."""
    scores = by_class(outputs, targets)
    predicted, targets, classes = scores.argmax(1).cpu(), targets.cpu(), scores.shape[1]
    counted = targets >= 0
    predicted, targets = predicted[counted], targets[counted]
    both = targets[predicted == targets].bincount(minlength=classes).double()
    either = predicted.bincount(minlength=classes) + targets.bincount(minlength=classes) - both
    return (both[either > 0] / either[either > 0]).mean().item()


# Scores of outputs against targets that have a name, and what reports call them.
METRICS = {"accuracy": (accuracy, "accuracy"), "mean_iou": (mean_iou, "mean IoU"), "r_squared": (r_squared, "R²")}
