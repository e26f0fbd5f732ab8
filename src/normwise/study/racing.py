"""Racing: seeds go where the question is open, and a method stops when it is clearly behind.

After every round (one more seed for each method that is still running) each method is compared with the leader, in
pairs: on the seeds that both have run and, as long as that is only one, on the shorter trials that chose their learning
rates. It stops when the 95 % interval of its difference lies above the study's tolerance (:mod:`normwise.study.pairs`).

The race is over, though not before the fifth seed, as soon as the rest of the full grid does not matter:

- one method is left;
- or the full grid would give the same advice with a probability of 95 % (:mod:`normwise.study.forecast`);
- or what it would advise is expected to be better by no more than a tenth of the tolerance, as where methods are
  equal, or so much alike that the seeds which are left could not tell them apart.

What stops depends on complete rounds only, never on which worker finished first, so a race has the same outcome with
any number of workers. (As the advice itself, its end depends on what a step costs, where costs are close calls.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from normwise.records import Interval, Settings, Trial
from normwise.study.choice import cost, same_cost, step_bytes, step_seconds, trained_times
from normwise.study.forecast import forecast
from normwise.study.pairs import behind_leader

# Methods that are left when the race is over have run so many seeds, so that their scores are known.
ENOUGH = 5
# The probability that the full grid would advise the same at which its other seeds are spared.
SURE = 0.95
# Or the gain that is expected of them, in tolerances.
GAIN = 0.1
# The length of a trial that only chooses the learning rate, as a share of a final one. Much shorter ones prefer low
# rates: at a fifth of the length layer norm on the digits chose a rate that cost it 3 points.
TUNE_SHARE = 1 / 3


@dataclass(frozen=True)
class Stopped:
    """A method that left the race: after how many seeds, and how far behind the leader it was then."""

    runs: int
    behind: Interval


@dataclass
class Race:
    """The state of the race at one batch size: who is running, who has stopped.

    Those who are running may run ``rounds`` seeds now, and as things stand ``last`` in the end.
    """

    running: list[str]
    rounds: int
    last: int
    stopped: dict[str, Stopped] = field(default_factory=dict)

    def runs(self, method: str) -> int:
        """How many seeds a method may run so far, or ran before it stopped."""
        return self.stopped[method].runs if method in self.stopped else self.rounds

    def most(self, method: str) -> int:
        """How many seeds a method runs at the most, or ran before it stopped."""
        return self.stopped[method].runs if method in self.stopped else self.last


def race(settings: Settings, trials: Iterable[Trial], batch_size: int) -> Race:
    """Replay the race at one batch size from the finished trials."""
    seeds = settings.seeds
    state = Race(list(settings.methods), len(seeds), len(seeds))
    if not settings.race:
        return state
    tuned, final = _scores(settings, trials, batch_size)
    state.rounds = 1
    while all((m, seed) in final for m in state.running for seed in seeds[: state.rounds]):
        rows = [[final[m, seed].valid_score for seed in seeds[: state.rounds]] for m in state.running]
        if state.rounds == 1:  # One pair has no scatter. Later on the short trials would only add to it.
            rows = [[tuned[m], *row] for m, row in zip(state.running, rows, strict=True)]
        gaps = dict(zip(state.running, behind_leader(np.array(rows)), strict=True))
        if state.rounds < len(seeds):
            _stop_those_behind(state, gaps, settings.tolerance)
        one_left = len(state.running) == 1
        if one_left or (ENOUGH <= state.rounds < state.last and _is_decided(settings, state, final)):
            state.last = min(state.last, max(state.rounds, ENOUGH))
        if state.rounds >= state.last:
            break
        state.rounds += 1
    return state


def _stop_those_behind(state: Race, gaps: Mapping[str, Interval | None], tolerance: float) -> None:
    for method, gap in gaps.items():
        if gap is not None and gap.low > tolerance:
            state.running.remove(method)
            state.stopped[method] = Stopped(state.rounds, gap)


def _is_decided(settings: Settings, state: Race, final: Mapping[tuple[str, int], Trial]) -> bool:
    """Whether the seeds that are left would hardly change the advice."""
    runs = [[final[m, seed] for seed in settings.seeds[: state.rounds]] for m in state.running]
    told = forecast(
        scores=tuple(tuple(t.valid_score for t in of_one) for of_one in runs),
        total=len(settings.seeds),
        lost=tuple(any(t.state != "complete" for t in of_one) for of_one in runs),
        costs=tuple(cost(step_seconds(of_one), step_bytes(of_one)) for of_one in runs),
        tolerance=settings.tolerance,
        same=same_cost(trained_times([t for of_one in runs for t in of_one], state.running)),
    )
    return told.same >= SURE or told.gain <= GAIN * settings.tolerance


def _scores(
    settings: Settings, trials: Iterable[Trial], batch_size: int
) -> tuple[dict[str, float], dict[tuple[str, int], Trial]]:
    """Method → its best score on the first seed of the search for rates, and (method, seed) → its final trial."""
    tuned: dict[str, float] = {}
    final = {}
    for t in trials:
        if t.setup.batch_size == batch_size:
            if t.setup.stage == "final":
                final[t.setup.method, t.setup.seed] = t
            elif t.setup.seed == settings.tune_seeds[0]:
                tuned[t.setup.method] = max(tuned.get(t.setup.method, t.valid_score), t.valid_score)
    return tuned, final
