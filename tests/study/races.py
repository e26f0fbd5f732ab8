"""Simulated studies: made-up levels, and scores that scatter about them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tiny_study import fake_trial, make_settings

from normwise.records import Settings, Setup, Trial
from normwise.study.plan import due, tune_setups
from normwise.study.racing import TUNE_SHARE, race
from normwise.study.verdict import judge

NAMES = ("none", "batch", "layer", "weight", "instance", "group", "switchable")


def run_to_the_end(settings: Settings, trial: Callable[[Setup], Trial], in_turn=None) -> list[Trial]:
    """Train whatever is due, one setup or all at a time, until nothing is left."""
    trials = [trial(setup) for setup in tune_setups(settings)]
    while True:
        done = {t.setup.key for t in trials}
        open_setups = [setup for setup in due(settings, trials) if setup.key not in done]
        if not open_setups:
            return trials
        chosen = open_setups if in_turn is None else [open_setups[in_turn.integers(len(open_setups))]]
        trials += [trial(setup) for setup in chosen]


def noisy(levels, scatter, seed=0, costs=None):
    """A trial per setup: a level, a shift that the seed gives to every method, and a scatter of its own."""

    def trial(setup):
        shift = np.random.default_rng([seed, setup.seed]).normal(0, 0.02)
        own = np.random.default_rng([seed, setup.seed, sorted(levels).index(setup.method)]).normal(0, scatter)
        cost = {} if costs is None else {"step_seconds": costs[setup.method]}
        return fake_trial(setup, levels[setup.method] + shift + own, **cost)

    return trial


@dataclass(frozen=True)
class Outcome:
    """A race, the grid on the same seeds, and a grid on others; ``lost`` are true levels, the grid's advice minus."""

    same: bool
    same_tied: bool
    another_grid_same: bool
    lost: float
    another_grid_lost: float
    cost: float
    stopped_the_best: bool
    stopped_as_good: int
    as_good: int


def compete(spread: float, scatter: float, seed: int, seeds: int = 10) -> Outcome:
    """Draw a study of seven methods with random levels and costs; run it as a grid and as a race."""
    rng = np.random.default_rng([seed, 1])
    levels = dict(zip(NAMES, 0.8 + rng.normal(0, spread, len(NAMES)), strict=True))
    costs = dict(zip(NAMES, rng.choice([0.010, 0.0105, 0.012, 0.015, 0.02], len(NAMES)), strict=True))
    trial, both = noisy(levels, scatter, seed, costs), range(2 * seeds)
    grid, other = (make_settings(NAMES, seeds=part) for part in (both[:seeds], both[seeds:]))
    raced = make_settings(NAMES, seeds=both[:seeds], race=True, tune_share=TUNE_SHARE)
    full, more, short = (run_to_the_end(settings, trial) for settings in (grid, other, raced))
    pairs = ((grid, full), (other, more), (raced, short))
    verdict, another, quick = (judge(settings, trials)[1][0] for settings, trials in pairs)
    stopped, best = race(raced, short, 2).stopped, max(levels.values())
    good = {m for m in NAMES if levels[m] >= best - raced.tolerance}
    return Outcome(
        same=quick.use == verdict.use,
        same_tied=set(quick.tied) == set(verdict.tied),
        another_grid_same=another.use == verdict.use,
        lost=levels[verdict.use] - levels[quick.use],
        another_grid_lost=levels[verdict.use] - levels[another.use],
        cost=_cost(raced, short) / _cost(grid, full),
        stopped_the_best=max(levels, key=levels.__getitem__) in stopped,
        stopped_as_good=len(good & stopped.keys()),
        as_good=len(good),
    )


def _cost(settings: Settings, trials: list[Trial]) -> float:
    """In lengths of a final trial."""
    return sum(1.0 if t.setup.stage == "final" else settings.tune_share for t in trials)
