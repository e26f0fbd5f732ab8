"""Simulated verdicts: what they say of studies whose true levels, rates and costs are known."""

from dataclasses import dataclass

import numpy as np
from races import run_to_the_end
from tiny_study import fake_trial, make_settings

from normwise.records import Settings, Setup, StepCost, Trial
from normwise.study.choice import same_cost, turn_times, with_costs
from normwise.study.standings import standings_at
from normwise.study.tuning import tuning

NAMES = ("none", "batch", "layer", "weight", "instance", "group")


@dataclass(frozen=True)
class Coverage:
    """Shares of intervals that hold the true value, over all methods of a study."""

    score: float
    behind: float
    step: float
    different: float


def cover(seeds: int, spread: float, scatter: float, seed: int) -> Coverage:
    """Draw levels, scores and step times of six methods; see which intervals hold what they were drawn from."""
    rng = np.random.default_rng([seed, seeds])
    levels = dict(zip(NAMES, 0.8 + rng.normal(0, spread, len(NAMES)), strict=True))
    shifts = rng.normal(0, 0.01, seeds)
    trials = [
        fake_trial(Setup("final", m, 2, 0.1, s), levels[m] + shifts[s] + rng.normal(0, scatter))
        for m in NAMES
        for s in range(seeds)
    ]
    standings, _ = standings_at(make_settings(NAMES, seeds=range(seeds)), trials, 2)
    best = levels[standings[0].method]
    rest = [s for s in standings if s.behind is not None]
    # Half of the methods cost the same, to see how often they are called different.
    seconds = dict(zip(NAMES, [0.01, 0.01, 0.01, 0.012, 0.015, 0.02], strict=True))
    busy = rng.normal(0, 0.2, 8)
    costs = [StepCost(m, 2, list(seconds[m] * np.exp(busy + rng.normal(0, 0.08, 8))), 1000) for m in NAMES]
    timed = {s.method: s.step_interval for s in with_costs(standings, costs)}
    times = turn_times(costs, NAMES[:3])
    apart = max(abs(np.mean(a) - np.mean(b)) for a in times for b in times)
    return Coverage(
        score=float(np.mean([s.valid.low <= levels[s.method] <= s.valid.high for s in standings])),
        behind=float(np.mean([s.behind.low <= best - levels[s.method] <= s.behind.high for s in rest])),
        # What the machine adds to all is not the method's.
        step=float(np.mean([timed[m].low <= seconds[m] * np.exp(busy.mean()) <= timed[m].high for m in NAMES])),
        different=float(apart > np.log1p(same_cost(times))),
    )


@dataclass(frozen=True)
class Chosen:
    """Two equal methods that are tuned apart: how far apart they end, what their rates cost, and the trials it took."""

    apart: float
    regret: float
    trials: int


def tune(settings: Settings, scatter: float, seed: int) -> Chosen:
    """Draw the score at each rate, the same for all methods; run the search."""
    rng = np.random.default_rng(seed)
    levels = dict(zip(settings.lrs["2"], 0.9 - np.abs(rng.normal(0, 0.03, len(settings.lrs["2"]))), strict=True))

    def trial(setup: Setup) -> Trial:
        own = np.random.default_rng([seed, setup.seed, settings.methods.index(setup.method), round(setup.lr * 1000)])
        return fake_trial(setup, levels[setup.lr] + own.normal(0, scatter))

    trials = [t for t in run_to_the_end(settings, trial) if t.setup.stage == "tune"]
    got = [levels[lr] for lr in tuning(settings, trials, 2).chosen.values()]
    return Chosen(float(max(got) - min(got)), float(max(levels.values()) - np.mean(got)), len(trials))
