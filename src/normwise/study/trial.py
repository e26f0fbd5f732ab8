"""Train one cell: same cell, same numbers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from normwise.methods import METHODS
from normwise.nn import importance
from normwise.parametrize import weight_normalize
from normwise.records import Cell, Mixture, Point, Trial
from normwise.study.data import Part
from normwise.study.measure import peak_bytes
from normwise.study.tasks import Task

OPTIMIZER = "SGD, momentum 0.9, no weight decay"
SCHEDULE = "linear warm-up over the first 5 % of the steps, then cosine to 0"

_CURVE_POINTS = 6
_WARM_UP = 0.05
_EVALUATION_BATCH = 512


class DivergedError(ArithmeticError):
    """The loss or the outputs of a training run became infinite or NaN.

    Example:
        >>> str(DivergedError("the loss is nan at step 3"))
        'the loss is nan at step 3'
    """


@dataclass
class _Log:
    """What is known of a trial so far; survives a divergence half way."""

    step: int = 0
    parameters: int = 0
    step_seconds: list[float] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)
    mixtures: list[Mixture] = field(default_factory=list)
    peak: int | None = None


class Trainer:
    """Turns cells into trials.

    For a given batch size and seed every method starts from the same weights (the normalization layers draw no random
    numbers) and sees the same samples in the same order. torch's global random state and thread count are left as
    they were.

    Args:
        task: what to train.
        steps: batch size → optimizer steps.
        measure_memory: whether to, which takes an extra step per method and batch size.

    Example:
        >>> from normwise.study.tasks import load_task
        >>> trial = Trainer(load_task("digits"), {32: 3})(Cell("final", "group", 32, 0.1, seed=0))
        >>> trial.state, trial.steps
        ('complete', 3)
    """

    def __init__(self, task: Task, steps: dict[int, int], measure_memory: bool = True) -> None:
        self.task = task
        self.measure_memory = measure_memory
        self.steps = steps
        # The memory of a step depends on method and batch size only, and measuring it is slow.
        self._peaks: dict[tuple[str, int], int | None] = {}

    def __call__(self, cell: Cell) -> Trial:
        """Train one cell; a divergence, or an error raised by the model, is a result too.

        Args:
            cell: what to train.

        Returns:
            The outcome.
        """
        began, log, task = time.perf_counter(), _Log(), self.task
        state, reason = "complete", None
        lost: tuple[float, float | None] = (task.floor, None)
        valid = test = lost
        with _isolated(task.threads):
            try:
                model = build_model(task, cell)
                log.parameters = sum(p.numel() for p in model.parameters())
                self._train(model, cell, log)
                valid, test = (_evaluate(model, task, part) for part in (task.splits.valid, task.splits.test))
            except DivergedError as error:
                state, reason = "diverged", str(error)
            except Exception as error:
                # The user's model may not work with every method (batch norm of single values, say): that is a finding.
                state, reason = "failed", describe_error(error)
            if state != "complete":
                valid = test = lost
        return Trial(
            cell=cell,
            state=state,
            valid_score=valid[0],
            test_score=test[0],
            valid_loss=valid[1],
            test_loss=test[1],
            steps=log.step,
            step_seconds=statistics.median(log.step_seconds) if log.step_seconds else None,
            seconds=time.perf_counter() - began,
            peak_bytes=log.peak,
            parameters=log.parameters,
            curve=log.curve,
            mixtures=log.mixtures,
            reason=reason,
        )

    def _train(self, model: nn.Module, cell: Cell, log: _Log) -> None:
        total = self.steps[cell.batch_size]
        optimizer = _SGD(model)
        batches = data_order(self.task.splits.train, cell)
        marks = {round(total * k / _CURVE_POINTS) for k in range(1, _CURVE_POINTS + 1)}
        losses: list[float] = []

        def step(batch: Part, lr: float) -> float:
            model.zero_grad()
            loss = self.task.loss(model(batch.inputs), batch.targets)
            loss.backward()
            optimizer.step(lr)
            return loss.item()

        while log.step < total:
            batch = next(batches)
            began = time.perf_counter()
            losses.append(step(batch, cell.lr * schedule(log.step, total)))
            log.step_seconds.append(time.perf_counter() - began)
            log.step += 1
            if not math.isfinite(losses[-1]):
                raise DivergedError(f"the loss became {losses[-1]} at step {log.step} of {total}")
            if log.step in marks:
                epoch = round(log.step * cell.batch_size / len(self.task.splits.train.inputs), 4)
                score, _ = _evaluate(model, self.task, self.task.splits.valid)
                log.curve.append(Point(log.step, epoch, statistics.fmean(losses), score))
                losses.clear()
        log.mixtures = list(importance(model))
        key = cell.method, cell.batch_size
        if self.measure_memory and key not in self._peaks:
            # On a copy of the last batch's step; the weights it changes are put back.
            before = {name: t.clone() for name, t in model.state_dict().items()}
            self._peaks[key] = peak_bytes(lambda: step(batch, 0.0))
            model.load_state_dict(before)
        log.peak = self._peaks.get(key)


class _SGD:
    """v ← 0.9 · v + ∇, w ← w − lr · v, as ``torch.optim.SGD``, whose construction imports a compiler for seconds."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._velocities: list[Tensor | None] = [None] * len(self._parameters)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for i, parameter in enumerate(self._parameters):
            gradient, velocity = parameter.grad, self._velocities[i]
            if gradient is None:
                continue
            velocity = gradient.clone() if velocity is None else velocity.mul_(0.9).add_(gradient)
            self._velocities[i] = velocity
            parameter.sub_(velocity, alpha=lr)


def build_model(task: Task, cell: Cell) -> nn.Module:
    """Build a cell's model: fresh weights from the cell's seed, equal for every method.

    Method ``"weight"`` puts weight normalization on every convolution and linear layer, the last included; it keeps
    the initial weights.

    Args:
        task: gives the model.
        cell: its method and seed are read.

    Returns:
        The model in training mode.

    Example:
        >>> from normwise.study.tasks import load_task
        >>> model = build_model(load_task("digits"), Cell("final", "weight", 2, 0.1, seed=0))
        >>> sorted(name for name, _ in model[0].named_parameters())
        ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    """
    torch.manual_seed(cell.seed)
    model = task.make_model(task.norm(cell.method))
    if METHODS[cell.method].on_weights:
        weight_normalize(model)
    # Again, so that dropout draws the same numbers even where a model drew more of them for one method.
    torch.manual_seed(cell.seed)
    return model.train()


def data_order(train: Part, cell: Cell) -> Iterator[Part]:
    """Give batches of a cell for ever: a new shuffle each epoch, the same for every method, full batches only.

    Args:
        train: the training part.
        cell: its batch size and seed are read.

    Yields:
        The batches.

    Example:
        >>> part = Part(torch.arange(4), torch.arange(4))
        >>> cells = (Cell("final", method, 2, 0.1, seed=0) for method in ("batch", "layer"))
        >>> first, second = (next(data_order(part, cell)).inputs for cell in cells)
        >>> first.equal(second)
        True
    """
    generator = torch.Generator().manual_seed(cell.seed)
    samples, size = len(train.inputs), cell.batch_size
    while True:
        order = torch.randperm(samples, generator=generator)
        for start in range(0, samples - size + 1, size):
            yield train.take(order[start : start + size])


def schedule(step: int, total: int) -> float:
    """The learning rate's factor: a linear warm-up over the first 5 % of the steps, then a cosine to 0.

    Args:
        step: steps done.
        total: steps to do.

    Returns:
        A factor above 0 and at most 1.

    Example:
        >>> schedule(0, 100), schedule(5, 100), round(schedule(99, 100), 4)
        (0.2, 1.0, 0.0003)
    """
    warm_up = max(1, round(_WARM_UP * total))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(total - warm_up, 1)))


def describe_error(error: BaseException) -> str:
    r"""Give an error's type and first line, for a table.

    Args:
        error: any exception.

    Returns:
        One line of at most 300 characters.

    Example:
        >>> describe_error(ValueError("no\nway"))
        'ValueError: no'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


@torch.no_grad()
def _evaluate(model: nn.Module, task: Task, part: Part) -> tuple[float, float]:
    """Score and loss of a part in evaluation mode."""
    model.eval()
    try:
        outputs = torch.cat([model(x) for x in part.inputs.split(_EVALUATION_BATCH)])
    finally:
        model.train()
    loss = task.loss(outputs, part.targets).item()
    if not math.isfinite(loss) or not bool(torch.isfinite(outputs).all()):
        raise DivergedError("the outputs are not finite in evaluation")
    return task.score(outputs, part.targets), loss


@contextmanager
def _isolated(threads: int | None) -> Iterator[None]:
    """Leave torch's global random state and thread count as they were."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)
