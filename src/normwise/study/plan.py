"""The grid: which cells a study has, and the learning rate each method enters the comparison with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from normwise.errors import InputError
from normwise.records import Cell, Settings, Trial
from normwise.study.racing import race

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


def ladder(settings: Settings, batch_size: int) -> list[float]:
    """Every rate that the search may come to: the grid and, in steps like its outermost, ``settings.search`` more."""
    grid = sorted(settings.lrs[str(batch_size)])
    if len(grid) < 2 or not settings.search:
        return grid
    steps = range(1, settings.search + 1)
    below = [grid[0] * (grid[0] / grid[1]) ** k for k in reversed(steps)]
    above = [grid[-1] * (grid[-1] / grid[-2]) ** k for k in steps]
    return [*(float(f"{lr:.3g}") for lr in below), *grid, *(float(f"{lr:.3g}") for lr in above)]


def searched(settings: Settings, trials: Iterable[Trial], batch_size: int) -> tuple[list[float], bool]:
    """The rates that the search has come to, and whether it is over."""
    # It is over when the best rate of every method has others on both sides, or the ladder ends. Until then all methods
    # try the next rate on that side: each gets the same budget.
    rungs, grid = ladder(settings, batch_size), settings.lrs[str(batch_size)]
    low = rungs.index(min(grid))
    high = low + len(grid)
    done = {t.cell.key: t for t in trials if t.cell.stage == "tune" and t.cell.batch_size == batch_size}
    while True:
        cells = [_tune_cells(settings, method, batch_size, rungs[low:high]) for method in settings.methods]
        if not all(cell.key in done for of_one in cells for cell in of_one):
            return rungs[low:high], False
        best = {chosen_lr(done[cell.key] for cell in of_one) for of_one in cells} if settings.tune_seeds else set()
        down = low > 0 and rungs[low] in best
        up = high < len(rungs) and rungs[high - 1] in best
        if not (down or up):
            return rungs[low:high], True
        low, high = low - down, high + up


def tune_cells(settings: Settings, trials: Sequence[Trial] = ()) -> list[Cell]:
    """The cells that choose the learning rates: each method at each batch size with each rate and tuning seed."""
    rates = {b: _as_tried(settings, b, searched(settings, trials, b)[0]) for b in settings.batch_sizes}
    return [
        Cell("tune", method, batch_size, lr, seed)
        for batch_size in settings.batch_sizes
        for seed in settings.tune_seeds
        for lr in rates[batch_size]
        for method in settings.methods
    ]


def _as_tried(settings: Settings, batch_size: int, rates: Sequence[float]) -> list[float]:
    """The grid first, as that is what is known from the start."""
    grid = settings.lrs[str(batch_size)]
    return [*grid, *(lr for lr in rates if lr not in grid)]


def _tune_cells(settings: Settings, method: str, batch_size: int, rates: Sequence[float]) -> list[Cell]:
    return [Cell("tune", method, batch_size, lr, seed) for seed in settings.tune_seeds for lr in rates]


def chosen_lr(trials: Iterable[Trial]) -> float:
    """Choose among one method's tuning trials: highest mean validation score, then lowest loss, then smallest rate."""
    by_lr: dict[float, list[Trial]] = {}
    for trial in trials:
        by_lr.setdefault(trial.cell.lr, []).append(trial)
    if not by_lr:
        raise InputError("no tuning trial to choose a learning rate from")

    def merit(lr: float) -> tuple[float, float, float]:
        same = by_lr[lr]
        losses = [math.inf if t.valid_loss is None else t.valid_loss for t in same]
        # Rounded: the mean of equal scores must not depend on the order of the sum.
        return round(sum(t.valid_score for t in same) / len(same), 12), -sum(losses) / len(same), -lr

    return max(by_lr, key=merit)


def chosen_lrs(settings: Settings, trials: Iterable[Trial]) -> dict[tuple[str, int], float]:
    """The learning rate of each method and batch size whose tuning is finished; without tuning seeds, the first."""
    if not settings.tune_seeds:
        return {(m, b): settings.lrs[str(b)][0] for m in settings.methods for b in settings.batch_sizes}
    trials = list(trials)
    done = {trial.cell.key: trial for trial in trials}
    chosen = {}
    for batch_size in settings.batch_sizes:
        rates, over = searched(settings, trials, batch_size)
        for method in settings.methods:
            cells = _tune_cells(settings, method, batch_size, rates)
            # Where the search cannot go on, no method waits for the others.
            if (over or not settings.search) and all(cell.key in done for cell in cells):
                chosen[method, batch_size] = chosen_lr(done[cell.key] for cell in cells)
    return chosen


def due(settings: Settings, trials: Iterable[Trial]) -> list[Cell]:
    """Every cell that can be known so far: the tuning, and the comparison where its learning rate has been chosen."""
    trials = list(trials)
    chosen = chosen_lrs(settings, trials)
    races = {batch_size: race(settings, trials, batch_size) for batch_size in settings.batch_sizes}
    return tune_cells(settings, trials) + [
        Cell("final", method, batch_size, chosen[method, batch_size], seed)
        for batch_size in settings.batch_sizes
        for turn, seed in enumerate(settings.seeds)
        for method in settings.methods
        if (method, batch_size) in chosen and turn < races[batch_size].runs(method)
    ]


def total_cells(settings: Settings, trials: Iterable[Trial] = ()) -> int:
    """How many trials a study has when it is finished, as far as is known: a race stops some, a search adds some."""
    trials = list(trials)
    finals = sum(race(settings, trials, b).most(m) for b in settings.batch_sizes for m in settings.methods)
    return len(tune_cells(settings, trials)) + finals
