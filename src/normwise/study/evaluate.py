"""Score and loss of a model on one part of the data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normwise.errors import InputError
from normwise.study.data import Part, Samples, of_tokens, run, tensors_of
from normwise.study.reading import Sent, read

if TYPE_CHECKING:
    from normwise.study.tasks.base import Task

EVALUATION_BATCH = 512
# Tokens that are evaluated at once: each has an output for every token of the vocabulary.
_TOKENS = 4096


class DivergedError(ArithmeticError):
    """The loss or the outputs of a training run became infinite or NaN."""


def at_once(part: Part | Samples | Sent) -> int:
    """Say how many samples of a part are evaluated at once: of sequences of tokens, fewer."""
    first = part.take(slice(1)).load()
    length = tensors_of(first.inputs)[0].shape[1] if isinstance(first, Part) and of_tokens(first.inputs) else 1
    return max(1, min(EVALUATION_BATCH, _TOKENS // max(length, 1)))


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, part: Part | Samples | Sent) -> tuple[float, float]:
    """Score and loss of a part in evaluation mode.

    A task with a loss of batches or a metric of its own is taken batch by batch; else the outputs of the whole part
    are compared with its targets.
    """
    model.eval()
    outputs = targets = None
    with contextlib.ExitStack() as stack:
        stack.callback(model.train)
        stack.enter_context(task.compute.autocast())
        if task.metric is None and task.score is not None:
            outputs, targets = _outputs(model, task, part)
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
    return _number(score), loss


def _outputs(model: nn.Module, task: Task, part: Part | Samples | Sent) -> tuple[Any, Any]:
    """The outputs and targets of a whole part."""
    outputs, targets = [], []
    for batch in _batches(task, part):
        if not isinstance(batch, Part):
            raise InputError(
                f"a batch is a {type(batch).__name__}, expected a pair of inputs and targets: for others give a "
                "loss(model, batch) and a metric(model, loader) of your own"
            )
        outputs.append(run(model, batch.inputs))
        targets.append(batch.targets)
    return _full(_joined(outputs, "the model gives")), _joined(targets, "the targets are")


def _batches(task: Task, part: Part | Samples | Sent) -> Iterator[Any]:
    """The batches of a part in order."""
    size = at_once(part)
    wanted = ((torch.arange(start, min(start + size, part.size)), 0) for start in range(0, part.size, size))
    return read(part, wanted, task.compute.num_workers)


def _full(outputs: Any) -> Any:
    """Outputs in float32 where autocast gave fewer digits."""
    if isinstance(outputs, tuple):
        return tuple(map(_full, outputs))
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def _joined(values: list[Any], what: str) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if isinstance(values[0], tuple) and all(isinstance(t, Tensor) for t in values[0]):
        return tuple(torch.cat(tensors) for tensors in zip(*values, strict=True))
    raise InputError(
        f"{what} {type(values[0]).__name__}, expected a tensor or a tuple of tensors: for others give a "
        "loss(model, batch) and a metric(model, loader) of your own"
    )


def _mean_loss(model: nn.Module, task: Task, part: Part | Samples | Sent) -> float:
    losses = torch.stack([task.loss_of(model, batch).reshape(()) for batch in _batches(task, part)])
    size = at_once(part)
    sizes = [min(size, part.size - start) for start in range(0, part.size, size)]
    # Read together: each reading makes the host wait for the device.
    return sum(loss * size for loss, size in zip(losses.tolist(), sizes, strict=True)) / part.size


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
