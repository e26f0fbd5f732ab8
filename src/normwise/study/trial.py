"""Train one setup: same setup, same numbers."""

from __future__ import annotations

import inspect
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normwise import devices
from normwise.errors import InputError, described
from normwise.nn import importance, sync
from normwise.parametrize import weight_norm_init
from normwise.records import Mixture, Point, Setup, Trial
from normwise.study.compute import Stepper
from normwise.study.data import Part, Samples, Wanted, given_to, tensors_of
from normwise.study.evaluate import DivergedError, evaluate
from normwise.study.measure import peak_bytes
from normwise.study.optimize import PerEpoch
from normwise.study.reading import Sent, read
from normwise.study.tasks.base import Observer, Task

Step = Callable[[Sequence[Part]], Tensor]

_CURVE_POINTS = 6
# On an accelerator: after so many steps their losses are read, all at once; and of so many steps the last is timed, or
# of fewer where a trial is short. Each makes the host wait.
_READ_EVERY, _TIMED_EVERY, _TIMED_LEAST = 50, 20, 5
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
        parallel = nn.parallel.DistributedDataParallel
        # Synced running averages are equal already. From torch 2.13 on the option has another name.
        names = "forward_sync_buffers", "broadcast_buffers"
        known = next(name for name in names if name in inspect.signature(parallel).parameters)
        options: dict[str, Any] = {known: False}
        # A parameter may be unused in some batch.
        return parallel(sync(model), find_unused_parameters=True, **options)

    def loss(self, task: Task, model: nn.Module, batch: Part) -> Tensor:
        """Give this rank's loss, such that the average over the ranks is the mean over the batch."""
        if self.size == 1:
            return task.loss_of(model, batch)
        first, end = self.bounds(batch.size)
        # Uneven shares count by their size.
        return task.loss_of(model, batch.take(slice(first, end))) * ((end - first) * self.size / batch.size)

    def mean(self, loss: Tensor) -> Tensor:
        """Average a loss over the ranks, so that all see the same, a divergence above all."""
        loss = loss.detach()
        if self.size == 1:
            return loss
        total = loss.clone()
        dist.all_reduce(total)
        return total / self.size


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
    notes: list[str] = field(default_factory=list)


class _Losses:
    """The losses of a trial; they stay on the device, to be read together now and then."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._unread: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        self._unread.append(loss.reshape(()))

    def read(self) -> int | None:
        """Read what is new; give the place of the first that is not finite, as though each had been read at once."""
        first = len(self.values)
        if self._unread:
            self.values += torch.stack(self._unread).tolist()
            self._unread.clear()
        return next((k for k in range(first, len(self.values)) if not math.isfinite(self.values[k])), None)


class Trainer:
    """Turns setups into trials.

    For a given batch size and seed every method starts from the same weights (the normalization layers draw no random
    numbers) and sees the same samples in the same order, on every device. torch's global random state and thread count
    are left as they were.
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

    def __call__(self, setup: Setup) -> Trial:
        """Train one setup; a divergence, or an error raised by the model, is a result too."""
        began, log, task = time.perf_counter(), _Log(), self.task
        state, reason = "complete", None
        lost: tuple[float, float | None] = (task.floor, None)
        valid = test = lost
        device = task.compute.device
        with isolated(task), devices.deterministic(device) as undetermined:
            try:
                model = build_model(task, setup)
                log.parameters = sum(p.numel() for p in model.parameters())
                self._watched(model, setup, log)
                valid, test = (evaluate(model, task, part) for part in (task.splits.valid, task.splits.test))
            except DivergedError as error:
                state, reason = "diverged", str(error)
            except (Exception, SystemExit) as error:
                # The user's model may not work with every method (batch norm of single values, say): that is a finding.
                state, reason = "failed", described(error)
                if devices.out_of_memory(error):
                    reason = f"out of memory on {devices.name(device)}: {reason}"
            if state != "complete":
                valid = test = lost
                devices.release(device)
        if undetermined:
            log.notes.append(f"not deterministic on {devices.name(device)}: {', '.join(undetermined)}")
        return Trial(
            setup=setup,
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
            notes=log.notes,
        )

    def _watched(self, model: nn.Module, setup: Setup, log: _Log) -> None:
        """Train, with the task's observer if it has one."""
        observer = self.task.observe(model, self.task, setup) if self.task.observe else None
        try:
            step = self._train(model, setup, log, observer)
        finally:
            if observer is not None:
                observed = observer.result()
                json.dumps(observed, allow_nan=False)  # Refused here, where only this trial is lost.
                log.observed = observed
        log.mixtures = list(importance(model))
        log.peak = self._peak(model, setup, step)

    def _train(self, model: nn.Module, setup: Setup, log: _Log, observer: Observer | None) -> Callable[[], object]:
        """Train to the end; give the last step, to be done once more."""
        task, total = self.task, self.steps[setup.batch_size]
        if setup.stage == "tune":
            total = max(1, round(total * self.tune_share))
        trained = self.ranks.wrap(model)
        optimizer, schedule = task.optimize(model, setup.lr, total)
        stepper = Stepper(optimizer, task.compute)
        step = training_step(task, trained, stepper, self.ranks)
        batches = training_batches(task, setup)
        per_epoch = max(1, task.splits.train.size // setup.batch_size // task.accumulate)
        marks = {round(total * k / _CURVE_POINTS) for k in range(1, _CURVE_POINTS + 1)}
        losses, told = _Losses(), 0
        # The host itself waits for nothing. An observer is told of each step.
        read_every = 1 if task.compute.on_cpu or observer is not None else _READ_EVERY
        timed_every = 1 if task.compute.on_cpu else max(1, min(_TIMED_EVERY, total // _TIMED_LEAST))

        while log.step < total:
            parts = [next(batches) for _ in range(task.accumulate)]
            timed = (log.step + 1) % timed_every == 0
            if timed:
                devices.synchronize(task.compute.device)
            began = time.perf_counter()
            losses.add(step(parts))
            if schedule is not None:
                schedule.step()
                if isinstance(schedule, PerEpoch) and (log.step + 1) % per_epoch == 0:
                    schedule.end_epoch()
            if timed:
                devices.synchronize(task.compute.device)
                log.step_seconds.append(time.perf_counter() - began)
            log.step += 1
            marked = log.step in marks
            if not (marked or log.step % read_every == 0 or log.step == total):
                continue
            bad = losses.read()
            if observer is not None:
                observer.step(log.step, losses.values[-1])
            if bad is not None:
                log.step = bad + 1
                raise DivergedError(f"the loss became {losses.values[bad]} at step {log.step} of {total}")
            if marked:
                epoch = round(log.step * task.accumulate * setup.batch_size / task.splits.train.size, 4)
                score, _ = evaluate(model, task, task.splits.valid)
                log.curve.append(Point(log.step, epoch, statistics.fmean(losses.values[told:]), score))
                told = log.step
        if skipped := stepper.skipped():
            log.notes.append(f"{skipped} of {total} steps left out: their gradients were beyond float16")
        return partial(step, parts)

    def _peak(self, model: nn.Module, setup: Setup, step: Callable[[], object]) -> int | None:
        """Measure a step's memory once per method and batch size; the weights it changes are put back."""
        key = setup.method, setup.batch_size
        if self.measure_memory and key not in self._peaks:
            before = {name: t.clone() for name, t in model.state_dict().items()}
            self._peaks[key] = peak_bytes(step, self.task.compute.device)
            model.load_state_dict(before)
        return self._peaks.get(key)


def build_model(task: Task, setup: Setup) -> nn.Module:
    """Build a setup's model: fresh weights from the setup's seed, equal for every method and on every device.

    ``weight(init=data)`` sets the lengths by a first look at some training data, the same for a seed.
    """
    home = task.home or task
    torch.manual_seed(setup.seed)
    model = home.build(setup.method)
    if task.options(setup.method).get("init") == "data":
        train = home.splits.train
        first = torch.randperm(train.size, generator=torch.Generator().manual_seed(setup.seed))[:_INITIAL]
        batch = train.take(first).load(setup.seed)
        if not isinstance(batch, Part):
            raise InputError("weight(init=data) needs batches of (inputs, targets): use weight")
        given = given_to(model, batch.inputs)
        weight_norm_init(model, **given) if isinstance(given, Mapping) else weight_norm_init(model, *tensors_of(given))
    model = task.compute.settle(model.train())
    # Again, so that dropout draws the same numbers even where a model drew more of them for one method.
    torch.manual_seed(setup.seed)
    return model


def training_step(task: Task, model: nn.Module, stepper: Stepper, ranks: Ranks = _ALONE) -> Step:
    """Give what trains a model by one step on the batches that it is given, and tells their loss without reading it."""

    def step(parts: Sequence[Part]) -> Tensor:
        model.zero_grad()
        losses = []
        for part in parts:
            with task.compute.autocast():
                loss = ranks.loss(task, model, part) / len(parts)
            stepper.backward(loss)
            losses.append(ranks.mean(loss))
        stepper.step()
        return sum(losses[1:], losses[0])

    return step


def training_batches(task: Task, setup: Setup) -> Iterator[Part]:
    """Give a setup's training batches for ever, augmented if the task says so."""
    workers = task.compute.num_workers
    if task.augment is None:
        yield from data_order(task.splits.train, setup, workers)
        return
    # On the CPU, where its generator draws.
    generator = torch.Generator().manual_seed(setup.seed)
    for batch in data_order((task.home or task).splits.train, setup, workers):
        yield devices.move(task.augment(batch, generator), task.compute.device)


def data_order(train: Part | Samples | Sent, setup: Setup, num_workers: int = 0) -> Iterator[Part]:
    """Give batches of a setup for ever: a new shuffle each epoch, the same for every method, full batches only."""
    return read(train, _order(train, setup), num_workers)


def _order(train: Part | Samples | Sent, setup: Setup) -> Iterator[Wanted]:
    """Which samples make the batches; drawn on the CPU and brought where the data lie."""
    generator = torch.Generator().manual_seed(setup.seed)
    samples, size = train.size, setup.batch_size
    place = tensors_of(train.inputs)[0].device if isinstance(train, Part) else devices.CPU
    for epoch in count():
        order = torch.randperm(samples, generator=generator).to(place)
        for start in range(0, samples - size + 1, size):
            yield order[start : start + size], setup.seed + 1_000_003 * (epoch * samples + start + 1)


@contextmanager
def isolated(task: Task) -> Iterator[None]:
    """Leave torch's global random state and thread count as they were while something of a task runs."""
    before = torch.get_num_threads()
    with devices.keeping_random_state(task.compute.device), warnings.catch_warnings():
        # Said of a schedule after float16's scaler of gradients has left the first step out.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        try:
            if task.threads is not None:
                torch.set_num_threads(task.threads)
            yield
        finally:
            torch.set_num_threads(before)
