"""Losses and scores of outputs against targets; scores are higher where a model is better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normwise.errors import InputError


def by_class(outputs: Tensor, targets: Tensor) -> Tensor:
    """Put the classes on axis 1, where torch's losses want them."""
    first = outputs.shape[:1] + outputs.shape[2:] == targets.shape
    return outputs.movedim(-1, 1) if not first and outputs.shape[:-1] == targets.shape else outputs


def class_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, with the classes on axis 1 or on the last."""
    return nn.functional.cross_entropy(by_class(outputs, targets), targets)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of targets whose largest output is that of their class."""
    right: Tensor = by_class(outputs, targets).argmax(1) == targets
    return right.sum().item() / right.numel()


def aligned(outputs: Tensor, targets: Tensor) -> Tensor:
    """Give real-valued outputs the targets' shape, where they differ in axes of one element alone.

    (N, 1) against (N,) would broadcast to (N, N), every output against every target.
    """
    if [size for size in outputs.shape if size != 1] != [size for size in targets.shape if size != 1]:
        raise InputError(
            f"the model gives {tuple(outputs.shape)} and the targets are {tuple(targets.shape)}: make them the same "
            "shape, or give a loss(model, batch) of your own"
        )
    return outputs.reshape(targets.shape)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of outputs that are :func:`aligned` with their targets."""
    return nn.functional.mse_loss(aligned(outputs, targets), targets)


@dataclass(frozen=True)
class Criterion:
    """A criterion of torch's whose real-valued targets are met by outputs of their shape; broadcasts are silent."""

    criterion: nn.Module

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give the loss."""
        both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
        if both and targets.is_floating_point() and type(self.criterion).__module__ == torch.nn.modules.loss.__name__:
            outputs = aligned(outputs, targets)
        loss: Tensor = self.criterion(outputs, targets)
        return loss


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
