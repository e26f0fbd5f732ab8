"""From trials to standings: paired differences and bootstrap intervals over the seeds.

With three to five seeds the textbook percentile interval is much too narrow: a bootstrap mean never leaves the range of
the data, and its spread lacks the factor √(n/(n−1)) and Student's heavier tails. Both are put back by stretching the
bootstrap distribution about its centre by t(n−1) / z · √(n/(n−1)), the correction of Hesterberg (2015, "What Teachers
Should Know about the Bootstrap", The American Statistician 69(4)) applied to the distribution instead of the level,
since at n = 3 no level of it reaches 95 % coverage.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from normwise.records import Interval, Settings, Standing, Trial
from normwise.study.choice import step_bytes, step_seconds
from normwise.study.pairs import LEVEL, PRIOR, ROUNDING, moderated, stretch
from normwise.study.racing import race

RESAMPLES = 9999


def resampled_means(scores: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Bootstrap the means of several rows jointly, so that what is paired stays paired; stretched for small n.

    The random numbers are always the same: equal scores give equal intervals.
    """
    n = scores.shape[1]
    columns = np.arange(n)
    result = scipy.stats.bootstrap(
        (columns,),
        lambda index, axis=-1: scores[:, index].mean(axis=-1),
        n_resamples=resamples,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    centre = scores.mean(axis=1, keepdims=True)
    return centre + stretch(n) * (result.bootstrap_distribution - centre)


def interval_of(value: float, means: np.ndarray, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Interval:
    """The central 95 % of resampled means, within the bounds of the score."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = min(low, value), max(high, value)
    return Interval(float(value), float(np.clip(low, *bounds)), float(np.clip(high, *bounds)), LEVEL)


def standings_at(settings: Settings, trials: Sequence[Trial], batch_size: int) -> tuple[list[Standing], np.ndarray]:
    """Rank the methods at one batch size."""
    state = race(settings, trials, batch_size)
    runs = {m: _final_runs(settings, trials, m, batch_size, state.most(m)) for m in settings.methods}
    methods = [m for m in state.running if runs[m]]
    if not methods:
        return [], np.empty((0, 0))
    methods.sort(key=lambda m: (-_mean_valid(runs[m]), step_seconds(runs[m]) or 0.0, m))
    scores = np.array([_valid(runs[m]) for m in methods] + [_test(runs[m]) for m in methods])
    means, resampled = scores.mean(axis=1), resampled_means(scores)
    shares = _shares_of_wins(resampled[: len(methods)])
    found = []
    for k, method in enumerate(methods):
        valid, test = k, len(methods) + k
        behind = [
            interval_of(means[best] - means[row], resampled[best] - resampled[row])
            for best, row in ((0, valid), (len(methods), test))
        ]
        found.append(
            _standing(
                settings,
                runs[method],
                _tuning(trials, method, batch_size),
                valid=interval_of(means[valid], resampled[valid], _bounds(settings)),
                test=interval_of(means[test], resampled[test], _bounds(settings)),
                behind=behind[0] if k else None,
                behind_test=behind[1] if k else None,
                tied=k == 0 or behind[0].low <= ROUNDING,
                probability_best=float(shares[k]),
            )
        )
    common = [float(np.median(part.var(axis=1, ddof=1))) for part in np.split(scores, 2)]
    for method, stop in sorted(state.stopped.items(), key=lambda item: item[1].behind.value):
        of_parts = zip((_valid(runs[method]), _test(runs[method])), common, strict=True)
        score = [_moderated_interval(part, scatter, settings) for part, scatter in of_parts]
        tuning = _tuning(trials, method, batch_size)
        found.append(_stopped(settings, runs[method], tuning, valid=score[0], test=score[1], behind=stop.behind))
    return found, resampled[: len(methods)]


def _standing(settings: Settings, runs: Sequence[Trial], tuning: Sequence[Trial], **compared: Any) -> Standing:
    """Add to what was compared what one method's own trials say."""
    setup = runs[0].setup
    # All methods tried the same.
    rates = [t.setup.lr for t in tuning] or settings.lrs[str(setup.batch_size)]
    return Standing(
        method=setup.method,
        batch_size=setup.batch_size,
        lr=setup.lr,
        lr_at_edge=setup.lr in (min(rates), max(rates)),
        runs=len(runs),
        diverged=_incomplete(runs),
        tune_diverged=_incomplete(tuning),
        step_seconds=step_seconds(runs),
        peak_bytes=step_bytes(runs),
        parameters=runs[0].parameters,
        **compared,
    )


def _stopped(settings: Settings, runs: Sequence[Trial], tuning: Sequence[Trial], **compared: Any) -> Standing:
    """The standing of a method that left the race."""
    apart = {"behind_test": None, "tied": False, "probability_best": 0.0, "stopped": True}
    return _standing(settings, runs, tuning, **compared, **apart)


def _moderated_interval(scores: Sequence[float], common: float, settings: Settings) -> Interval:
    """The mean of a stopped method's few scores, whose scatter borrows from that of the methods that ran on."""
    n, (low, high) = len(scores), _bounds(settings)
    variance = float(moderated(np.array(np.var(scores, ddof=1) if n > 1 else 0.0), n, common))
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, PRIOR + n - 1)) * (variance / n) ** 0.5
    mean = statistics.fmean(scores)
    return Interval(mean, max(mean - half, low), min(mean + half, high), LEVEL)


def share_near_best(resampled: np.ndarray, row: int, tolerance: float) -> float:
    """How often a row is within a tolerance of the highest one."""
    return float((resampled[row] >= resampled.max(axis=0) - tolerance - ROUNDING).mean())


def _shares_of_wins(resampled: np.ndarray) -> np.ndarray:
    """How often each row is the highest; rows that are equal share."""
    wins = resampled >= resampled.max(axis=0) - ROUNDING
    return (wins / wins.sum(axis=0)).mean(axis=1)


def _final_runs(settings: Settings, trials: Sequence[Trial], method: str, batch_size: int, count: int) -> list[Trial]:
    """A method's final trials in the order of the seeds; empty until it has run so many."""
    by_seed = {t.setup.seed: t for t in trials if _is(t, "final", method, batch_size)}
    seeds = settings.seeds[:count]
    return [by_seed[seed] for seed in seeds] if all(seed in by_seed for seed in seeds) else []


def _tuning(trials: Sequence[Trial], method: str, batch_size: int) -> list[Trial]:
    return [t for t in trials if _is(t, "tune", method, batch_size)]


def _is(trial: Trial, stage: str, method: str, batch_size: int) -> bool:
    return (trial.setup.stage, trial.setup.method, trial.setup.batch_size) == (stage, method, batch_size)


def _valid(runs: Sequence[Trial]) -> list[float]:
    return [t.valid_score for t in runs]


def _test(runs: Sequence[Trial]) -> list[float]:
    return [t.test_score for t in runs]


def _bounds(settings: Settings) -> tuple[float, float]:
    """What no score can leave."""
    return (0.0, 1.0) if settings.score_name == "accuracy" else (-np.inf, np.inf)


def _mean_valid(runs: Sequence[Trial]) -> float:
    return round(statistics.fmean(_valid(runs)), 12)


def _incomplete(runs: Sequence[Trial]) -> int:
    return sum(t.state != "complete" for t in runs)
