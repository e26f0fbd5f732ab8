"""Score and loss of a model on one part of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normwise.errors import InputError
from normwise.study.data import Part, Samples, of_tokens, run, tensors_of

if TYPE_CHECKING:
    from normwise.study.tasks.base import Task

EVALUATION_BATCH = 512
# Tokens that are evaluated at once: each has an output for every token of the vocabulary.
_TOKENS = 4096


class DivergedError(ArithmeticError):
    """The loss or the outputs of a training run became infinite or NaN."""


def pieces(part: Part | Samples) -> Iterator[Part | Samples]:
    """Go through a part in batches; of sequences of tokens fewer are taken at once."""
    first = part.take(slice(1)).load()
    length = tensors_of(first.inputs)[0].shape[1] if isinstance(first, Part) and of_tokens(first.inputs) else 1
    yield from part.batches(max(1, min(EVALUATION_BATCH, _TOKENS // max(length, 1))))


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, part: Part | Samples) -> tuple[float, float]:
    """Score and loss of a part in evaluation mode.

    A task with a loss of batches or a metric of its own is taken batch by batch; else the outputs of the whole part
    are compared with its targets.
    """
    model.eval()
    outputs = targets = None
    try:
        if task.metric is None and task.score is not None:
            outputs, targets = _outputs(model, part)
        if outputs is None or task.batch_loss:
            loss = _mean_loss(model, task, part)
        else:
            loss = float(task.loss(outputs, targets))
        if not math.isfinite(loss) or not _finite(outputs):
            raise DivergedError("the outputs are not finite in evaluation")
        if task.metric is not None:
            score = task.metric(model, part)
        else:
            score = task.score(outputs, targets) if task.score is not None else -loss
    finally:
        model.train()
    return _number(score), loss


def _outputs(model: nn.Module, part: Part | Samples) -> tuple[Any, Any]:
    """The outputs and targets of a whole part."""
    batches = [piece.load() for piece in pieces(part)]
    if not all(isinstance(batch, Part) for batch in batches):
        raise InputError(
            f"a batch is a {type(batches[0]).__name__}, expected a pair of inputs and targets: for others give a "
            "loss(model, batch) and a metric(model, loader) of your own"
        )
    outputs = [run(model, batch.inputs) for batch in batches]
    return _joined(outputs, "the model gives"), _joined([b.targets for b in batches], "the targets are")


def _joined(values: list[Any], what: str) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if isinstance(values[0], tuple) and all(isinstance(t, Tensor) for t in values[0]):
        return tuple(torch.cat(tensors) for tensors in zip(*values, strict=True))
    raise InputError(
        f"{what} {type(values[0]).__name__}, expected a tensor or a tuple of tensors: for others give a "
        "loss(model, batch) and a metric(model, loader) of your own"
    )


def _mean_loss(model: nn.Module, task: Task, part: Part | Samples) -> float:
    total = 0.0
    for piece in pieces(part):
        total += float(task.loss_of(model, piece.load())) * piece.size
    return total / part.size


def _finite(outputs: Any) -> bool:
    tensors = outputs if isinstance(outputs, tuple) else () if outputs is None else (outputs,)
    return all(bool(torch.isfinite(t).all()) for t in tensors)


def _number(score: Any) -> float:
    try:
        value = float(score)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the metric gave {type(score).__name__}, expected one number") from error
    if not math.isfinite(value):
        raise DivergedError(f"the score is {value}")
    return value
