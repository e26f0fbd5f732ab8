"""Train one cell: same cell, same numbers."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normwise.errors import InputError, described
from normwise.nn import importance, sync
from normwise.parametrize import weight_norm_init
from normwise.records import Cell, Mixture, Point, Trial
from normwise.study.data import Part, Samples, tensors_of
from normwise.study.evaluate import DivergedError, evaluate
from normwise.study.measure import peak_bytes
from normwise.study.optimize import PerEpoch, Steps
from normwise.study.tasks.base import Observer, Task

Step = Callable[[Sequence[Part]], float]

_CURVE_POINTS = 6
# Samples that a data-dependent initialization looks at.
_INITIAL = 256


@dataclass(frozen=True)
class Ranks:
    """The processes that train one trial together, and which of them this is."""

    rank: int = 0
    size: int = 1

    def bounds(self, samples: int) -> tuple[int, int]:
        """Say which samples of a batch this rank trains on."""
        return samples * self.rank // self.size, samples * (self.rank + 1) // self.size

    def wrap(self, model: nn.Module) -> nn.Module:
        """Prepare a model for training: sync its statistics, average its gradients."""
        if self.size == 1:
            return model
        # Synced running averages are equal already; a parameter may be unused in some batch.
        return nn.parallel.DistributedDataParallel(sync(model), broadcast_buffers=False, find_unused_parameters=True)

    def loss(self, task: Task, model: nn.Module, batch: Part) -> Tensor:
        """Give this rank's loss, such that the average over the ranks is the mean over the batch."""
        if self.size == 1:
            return task.loss_of(model, batch)
        first, end = self.bounds(batch.size)
        # Uneven shares count by their size.
        return task.loss_of(model, batch.take(slice(first, end))) * ((end - first) * self.size / batch.size)

    def mean(self, loss: Tensor) -> float:
        """Average a loss over the ranks, so that all see the same, a divergence above all."""
        if self.size == 1:
            return loss.item()
        total = loss.detach().clone()
        dist.all_reduce(total)
        return total.item() / self.size


_ALONE = Ranks()


@dataclass
class _Log:
    """What is known of a trial so far; survives a divergence half way."""

    step: int = 0
    parameters: int = 0
    step_seconds: list[float] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)
    mixtures: list[Mixture] = field(default_factory=list)
    peak: int | None = None
    observed: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """Turns cells into trials.

    For a given batch size and seed every method starts from the same weights (the normalization layers draw no random
    numbers) and sees the same samples in the same order. torch's global random state and thread count are left as
    they were.
    """

    def __init__(self, task: Task, steps: dict[int, int], measure_memory: bool = True, tune_share: float = 1.0) -> None:
        self.task = task
        self.measure_memory = measure_memory
        self.steps = steps
        self.tune_share = tune_share
        # The memory of a step depends on method and batch size only, and measuring it is slow.
        self._peaks: dict[tuple[str, int], int | None] = {}
        # This process alone, unless it is one of several that train a trial together.
        self.ranks = _ALONE

    def __call__(self, cell: Cell) -> Trial:
        """Train one cell; a divergence, or an error raised by the model, is a result too."""
        began, log, task = time.perf_counter(), _Log(), self.task
        state, reason = "complete", None
        lost: tuple[float, float | None] = (task.floor, None)
        valid = test = lost
        with isolated(task.threads):
            try:
                model = build_model(task, cell)
                log.parameters = sum(p.numel() for p in model.parameters())
                self._watched(model, cell, log)
                valid, test = (evaluate(model, task, part) for part in (task.splits.valid, task.splits.test))
            except DivergedError as error:
                state, reason = "diverged", str(error)
            except (Exception, SystemExit) as error:
                # The user's model may not work with every method (batch norm of single values, say): that is a finding.
                state, reason = "failed", described(error)
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
            observed=log.observed,
        )

    def _watched(self, model: nn.Module, cell: Cell, log: _Log) -> None:
        """Train, with the task's observer if it has one."""
        observer = self.task.observe(model, self.task, cell) if self.task.observe else None
        try:
            step = self._train(model, cell, log, observer)
        finally:
            if observer is not None:
                observed = observer.result()
                json.dumps(observed, allow_nan=False)  # Refused here, where only this trial is lost.
                log.observed = observed
        log.mixtures = list(importance(model))
        log.peak = self._peak(model, cell, step)

    def _train(self, model: nn.Module, cell: Cell, log: _Log, observer: Observer | None) -> Callable[[], object]:
        """Train to the end; give the last step, to be done once more."""
        task, total = self.task, self.steps[cell.batch_size]
        if cell.stage == "tune":
            total = max(1, round(total * self.tune_share))
        trained = self.ranks.wrap(model)
        optimizer, schedule = task.optimize(model, cell.lr, total)
        step = training_step(task, trained, optimizer, self.ranks)
        batches = training_batches(task, cell)
        per_epoch = max(1, task.splits.train.size // cell.batch_size // task.accumulate)
        marks = {round(total * k / _CURVE_POINTS) for k in range(1, _CURVE_POINTS + 1)}
        losses: list[float] = []

        while log.step < total:
            parts = [next(batches) for _ in range(task.accumulate)]
            began = time.perf_counter()
            losses.append(step(parts))
            if schedule is not None:
                schedule.step()
                if isinstance(schedule, PerEpoch) and (log.step + 1) % per_epoch == 0:
                    schedule.end_epoch()
            log.step_seconds.append(time.perf_counter() - began)
            log.step += 1
            if observer is not None:
                observer.step(log.step, losses[-1])
            if not math.isfinite(losses[-1]):
                raise DivergedError(f"the loss became {losses[-1]} at step {log.step} of {total}")
            if log.step in marks:
                epoch = round(log.step * task.accumulate * cell.batch_size / task.splits.train.size, 4)
                score, _ = evaluate(model, task, task.splits.valid)
                log.curve.append(Point(log.step, epoch, statistics.fmean(losses), score))
                losses.clear()
        return partial(step, parts)

    def _peak(self, model: nn.Module, cell: Cell, step: Callable[[], object]) -> int | None:
        """Measure a step's memory once per method and batch size; the weights it changes are put back."""
        key = cell.method, cell.batch_size
        if self.measure_memory and key not in self._peaks:
            before = {name: t.clone() for name, t in model.state_dict().items()}
            self._peaks[key] = peak_bytes(step)
            model.load_state_dict(before)
        return self._peaks.get(key)


def build_model(task: Task, cell: Cell) -> nn.Module:
    """Build a cell's model: fresh weights from the cell's seed, equal for every method.

    ``weight(init=data)`` sets the lengths by a first look at some training data, the same for a seed.
    """
    torch.manual_seed(cell.seed)
    model = task.build(cell.method)
    if task.options(cell.method).get("init") == "data":
        train = task.splits.train
        first = torch.randperm(train.size, generator=torch.Generator().manual_seed(cell.seed))[:_INITIAL]
        batch = train.take(first).load(cell.seed)
        if not isinstance(batch, Part):
            raise InputError("weight(init=data) needs batches of (inputs, targets): use weight")
        weight_norm_init(model, *tensors_of(batch.inputs))
    # Again, so that dropout draws the same numbers even where a model drew more of them for one method.
    torch.manual_seed(cell.seed)
    return model.train()


def training_step(task: Task, model: nn.Module, optimizer: Steps, ranks: Ranks = _ALONE) -> Step:
    """Give what trains a model by one step on the batches that it is given, and tells their loss."""

    def step(parts: Sequence[Part]) -> float:
        model.zero_grad()
        total = 0.0
        for part in parts:
            loss = ranks.loss(task, model, part) / len(parts)
            loss.backward()
            total += ranks.mean(loss)
        optimizer.step()
        return total

    return step


def training_batches(task: Task, cell: Cell) -> Iterator[Part]:
    """Give a cell's training batches for ever, augmented if the task says so."""
    batches = data_order(task.splits.train, cell)
    if task.augment is None:
        yield from batches
        return
    generator = torch.Generator().manual_seed(cell.seed)
    for batch in batches:
        yield task.augment(batch, generator)


def data_order(train: Part | Samples, cell: Cell) -> Iterator[Part]:
    """Give batches of a cell for ever: a new shuffle each epoch, the same for every method, full batches only."""
    generator = torch.Generator().manual_seed(cell.seed)
    samples, size = train.size, cell.batch_size
    for epoch in count():
        order = torch.randperm(samples, generator=generator)
        for start in range(0, samples - size + 1, size):
            yield train.take(order[start : start + size]).load(cell.seed + 1_000_003 * (epoch * samples + start + 1))


@contextmanager
def isolated(threads: int | None) -> Iterator[None]:
    """Leave torch's global random state and thread count as they were."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)
