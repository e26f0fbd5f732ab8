"""The grid: which setups a study has, and how long they train."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from normwise.records import Settings, Setup, Trial
from normwise.study.racing import race
from normwise.study.tuning import tuning

# Learning rates are given for this batch size and scaled for others.
REFERENCE_BATCH = 32


def scaled_lrs(lrs: Sequence[float], batch_size: int, reference: int = REFERENCE_BATCH) -> list[float]:
    """Scale learning rates to a batch size: lr · √(b / reference), the same for every method."""
    factor = math.sqrt(batch_size / reference)
    return sorted({float(f"{lr * factor:.3g}") for lr in lrs})


def default_epochs(steps: int, batch_size: int, samples: int) -> float:
    """How long a trial trains by default: steps · √(2 / b), as passes over the data.

    Smaller batches get more steps and fewer passes; within one batch size all methods get the same.
    """
    return max(round(steps * math.sqrt(2 / batch_size) * batch_size / samples, 3), 0.001)


def training_steps(epochs: float, batch_size: int, samples: int, accumulate: int = 1) -> int:
    """The optimizer steps of a trial; an incomplete last batch of an epoch is left out."""
    return max(1, round(epochs * (samples // batch_size) / accumulate))


def tune_setups(settings: Settings, trials: Sequence[Trial] = ()) -> list[Setup]:
    """The setups that choose the learning rates, as far as they are known."""
    return [setup for b in settings.batch_sizes for setup in tuning(settings, trials, b).setups]


def due(settings: Settings, trials: Iterable[Trial]) -> list[Setup]:
    """Every setup that can be known so far: the tuning, and the comparison where its learning rate has been chosen."""
    trials = list(trials)
    tuned = {b: tuning(settings, trials, b) for b in settings.batch_sizes}
    races = {b: race(settings, trials, b) for b in settings.batch_sizes}
    return [setup for b in settings.batch_sizes for setup in tuned[b].setups] + [
        Setup("final", method, b, tuned[b].chosen[method], seed)
        for b in settings.batch_sizes
        for turn, seed in enumerate(settings.seeds)
        for method in settings.methods
        if method in tuned[b].chosen and turn < races[b].runs(method)
    ]


def total_setups(settings: Settings, trials: Iterable[Trial] = ()) -> int:
    """How many trials a study has when it is finished, as far as is known: a race stops some, a search adds some."""
    trials = list(trials)
    finals = sum(race(settings, trials, b).most(m) for b in settings.batch_sizes for m in settings.methods)
    return len(tune_setups(settings, trials)) + finals
