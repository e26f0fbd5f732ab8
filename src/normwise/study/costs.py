"""What a training step costs with each method: timed after the trials, on a machine that has nothing else to do.

The methods take turns, step by step and on the same batch, so that whatever slows the machine slows them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from normwise import devices
from normwise.records import Settings, Setup, StepCost, Trial
from normwise.study.compute import Stepper
from normwise.study.measure import peak_bytes
from normwise.study.tasks import Task
from normwise.study.trial import build_model, isolated, training_batches, training_step

# What timing may take at one batch size: a share of the training's seconds, and no more than so many.
_SHARE, _SECONDS = 0.05, 2.0
# Rounds that it takes in any case, and at most.
_LEAST, _MOST = 16, 200
# Steps of each method that are done before: compilers, libraries and allocators choose and reserve in them.
_WARM = 2
# Of each parameter: itself, its gradient and what an optimizer keeps.
_COPIES = 4
# Blocks of rounds whose medians are kept.
_BLOCKS = 8
# The share of the learning rate at which a step is timed.
_STILL = 1e-3


def measured(task: Task, settings: Settings, trials: Sequence[Trial], known: Sequence[StepCost]) -> list[StepCost]:
    """Measure at the batch sizes at which a method that came through is not among what is known; give all."""
    there = {(c.method, c.batch_size) for c in known}
    found = list(known)
    for batch_size in settings.batch_sizes:
        here = [t for t in trials if t.setup.batch_size == batch_size]
        through = {t.setup.method: t for t in here if t.setup.stage == "final" and t.state == "complete"}
        if any((method, batch_size) not in there for method in through):
            found = [c for c in found if c.batch_size != batch_size]
            if _fit(sum(t.parameters for t in through.values()), task.compute.device):
                seconds = min(_SHARE * sum(t.seconds for t in here), _SECONDS)
                found += _measured(task, [through[m].setup for m in settings.methods if m in through], seconds)
    return found


def _fit(parameters: int, device: torch.device) -> bool:
    """Whether models of so many parameters take less than half of the free memory, optimizers included."""
    free = devices.free_memory(device)
    return free is None or parameters * 4 * _COPIES < free / 2


def _measured(task: Task, setups: Sequence[Setup], seconds: float) -> list[StepCost]:
    """Measure a training step of each method; nothing where one of them cannot be had in this process."""
    with isolated(task):
        try:
            steps = [_step(task, setup) for setup in setups]
            for step in steps * _WARM:
                step()
            sizes = [peak_bytes(step, task.compute.device) for step in steps]
            rounds = np.array(_rounds(steps, seconds, task.compute.device))
        except Exception:
            return []
    blocks = np.array_split(rounds, min(len(rounds), _BLOCKS))
    times = np.array([np.median(block, axis=0) for block in blocks]).T
    return [
        StepCost(setup.method, setup.batch_size, [float(f"{s:.4g}") for s in of_one], size)
        for setup, of_one, size in zip(setups, times, sizes, strict=True)
    ]


def _step(task: Task, setup: Setup) -> Callable[[], object]:
    """A step on the first batches of the training, at so low a rate that the weights stay where they are."""
    model = build_model(task, setup)
    optimizer, _ = task.optimize(model, setup.lr * _STILL, _MOST)
    batches = training_batches(task, setup)
    step = training_step(task, model, Stepper(optimizer, task.compute))
    return partial(step, [next(batches) for _ in range(task.accumulate)])


def _rounds(steps: Sequence[Callable[[], object]], seconds: float, device: torch.device) -> list[list[float]]:
    """The time of each step, round by round, the device waited for; each round begins with another."""
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < _LEAST or (len(rounds) < _MOST and time.perf_counter() < end):
        taken = [0.0] * len(steps)
        for k in range(len(steps)):
            place = (k + len(rounds)) % len(steps)
            devices.synchronize(device)
            began = time.perf_counter()
            steps[place]()
            devices.synchronize(device)
            taken[place] = time.perf_counter() - began
        rounds.append(taken)
    return rounds
