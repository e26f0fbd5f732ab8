"""What to train next: seeds where a hypothesis is undecided, first where most claims are decided by the minute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from normwise.claims.claim import Arm, Claim, Runs, looks_of
from normwise.claims.judging import outcome_of
from normwise.outcomes import UNDECIDED, Answer
from normwise.records import Settings, Setup, Trial
from normwise.study.plan import training_steps, tune_setups
from normwise.study.tuning import chosen_lrs

# What a step takes before anything is known of it, in seconds.
_STEP = 0.005


class Stage(NamedTuple):
    """The next seeds of a claim: how many each arm is to have, about how long that takes, and whether it may decide."""

    claim: Claim
    seeds: dict[Arm, int]
    seconds: float
    decides: bool = True


def stages(claims: Sequence[Claim], runs: Runs, quick: bool) -> list[Stage]:
    """The next stage of every claim that still needs one, in the order in which they should be run."""
    found = []
    for claim in claims:
        judged = outcome_of(claim, runs, quick)
        lacking, for_parts = _lacking(claim, runs, judged.answers, looks_of(quick))
        if lacking:
            found.append(Stage(claim, lacking, seconds(runs, lacking), for_parts and judged.verdict == UNDECIDED))
    # A claim with a verdict waits, though a part of it be undecided; what serves several claims comes before.
    return sorted(found, key=lambda s: (not s.decides, s.seconds / _served(s, found)))


def time_left(ahead: Sequence[Stage], runs: Runs, quick: bool) -> float:
    """About how many seconds it takes until every claim has been judged once and those ahead once more."""
    first = looks_of(quick)[0]
    wanted = {arm: first for stage in ahead for e in stage.claim.experiments for arm in e.arms}
    for stage in ahead:
        wanted |= {arm: max(seeds, wanted[arm]) for arm, seeds in stage.seeds.items()}
    return seconds(runs, wanted)


def _lacking(claim: Claim, runs: Runs, answers: Sequence[Answer], looks: Sequence[int]) -> tuple[dict[Arm, int], bool]:
    """So many seeds each arm should have that has fewer, and whether a part that decides wants them."""
    deciding = [(part, answer) for part, answer in zip(claim.parts, answers, strict=True) if part.decides]
    wanted: dict[Arm, int] = {}
    for part in (p for p, answer in deciding if answer.estimate is not None and answer.verdict == UNDECIDED):
        _, arms, seeds = runs.at_look(part.measure)
        more = next((look for look in looks if look > seeds), seeds)
        wanted |= {arm: max(more, wanted.get(arm, 0)) for arm in arms}
    wanted = {arm: seeds for arm, seeds in wanted.items() if len(runs.finished(arm)) < seeds}
    first = _first(claim, runs, looks[0])
    unmeasured = any(answer.estimate is None for _, answer in deciding)
    return (first or wanted) if unmeasured else (wanted or first), unmeasured or bool(wanted)


def _first(claim: Claim, runs: Runs, look: int) -> dict[Arm, int]:
    """The first look of those methods of an experiment, at one batch size, that come next."""
    for experiment in claim.experiments:
        for size in experiment.batch_sizes:
            arms = [arm for arm in experiment.arms if arm.batch_size == size and len(runs.finished(arm)) < look]
            if arms:
                return dict.fromkeys(arms, look)
    return {}


def _served(stage: Stage, others: Iterable[Stage]) -> int:
    """How many claims want some of the same trials."""
    return sum(bool(stage.seeds.keys() & other.seeds.keys()) for other in others)


def seconds(runs: Runs, wanted: Mapping[Arm, int]) -> float:
    """About how long it takes to bring each arm to so many seeds."""
    return sum(_seconds(runs, arm, seeds) for arm, seeds in wanted.items())


def _seconds(runs: Runs, arm: Arm, seeds: int) -> float:
    """The same for one, the search for its learning rate included."""
    settings, trials = runs.settings_of[arm.experiment], runs.trials_of[arm.experiment]
    tuned = [
        t for t in trials if t.setup.stage == "tune" and Arm(arm.experiment, t.setup.method, t.setup.batch_size) == arm
    ]
    searching = 0 if runs.finished(arm) else len(settings.tune_seeds) * len(settings.lrs[str(arm.batch_size)])
    left = max(seeds - len(runs.finished(arm)), 0) + max(searching - len(tuned), 0)
    return left * (runs.seconds([arm]) or _guess(settings, arm))


def _guess(settings: Settings, arm: Arm) -> float:
    """About how long a trial takes that is the first of its kind."""
    return _STEP * training_steps(settings.epochs[str(arm.batch_size)], arm.batch_size, settings.splits["train"])


def due(settings: Settings, seeds: Mapping[Arm, int], trials: Sequence[Trial]) -> list[Setup]:
    """The setups of an experiment that bring these arms to so many seeds, with the search for their learning rates."""
    chosen, tuning = chosen_lrs(settings, trials), tune_setups(settings, trials)
    setups: list[Setup] = []
    for size in settings.batch_sizes:
        arms = [arm for arm in seeds if arm.batch_size == size]
        setups += [setup for setup in tuning if arms and setup.batch_size == size]
        setups += [
            Setup("final", arm.method, size, chosen[arm.method, size], seed)
            for seed in settings.seeds
            for arm in arms
            if (arm.method, size) in chosen and seed < seeds[arm]
        ]
    return setups
