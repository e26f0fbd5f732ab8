"""Which seeds are run next, from trials whose scores are made up."""

import dataclasses
import math

import pytest

from normwise.claims.claim import Arm, Claim, Experiment, Part, Runs, UnmeasuredError
from normwise.claims.judging import answer_of, limits_of
from normwise.claims.schedule import due, stages, time_left
from normwise.claims.tasks import digits
from normwise.outcomes import HOLDS, UNDECIDED
from normwise.records import Point, Setup, Trial
from normwise.study.tuning import ladder

METHODS = ("none", "batch", "layer")
MINE = Experiment("mine", digits, METHODS, batch_sizes=(32, 2), lrs=(0.1,), steps=10)


@pytest.fixture
def settings(small_data):
    return MINE.settings(digits(), quick=False)


def trial(method, size, seed, score, seconds=1.0, rise=0.0, lr=None, stage="final"):
    curve = [Point(5, 1.0, 0.1, score - rise), Point(10, 2.0, 0.1, score)]
    setup = Setup(stage, method, size, lr or {32: 0.1, 2: 0.025}[size], seed)
    return Trial(setup, "complete", score, score, 0.1, 0.1, 10, 0.1, seconds, None, 10, curve=curve)


def runs_of(settings, scores):
    """``scores``: method → one per seed, at batch size 32; at 2 they are the same."""
    found = [trial(m, size, k, s) for m, all_ in scores.items() for size in (32, 2) for k, s in enumerate(all_)]
    return Runs({"mine": found}, {"mine": settings})


def ahead(better, worse, **more):
    return Part(
        f"{better} is ahead of {worse}",
        lambda runs: runs.test(MINE, better, 32) - runs.test(MINE, worse, 32),
        at_least=0.0,
        **more,
    )


def claim(*parts, name="mine"):
    return Claim(1, name, "A claim", "It is so", "Somebody", "", (MINE,), parts)


CLEAR = {"none": [0.1, 0.2, 0.11, 0.2], "batch": [0.9, 0.91, 0.92, 0.9]}
NEAR = {"layer": [0.93, 0.88, 0.93, 0.89]}


def test_the_first_look_is_taken_a_batch_size_at_a_time(settings):
    empty = Runs({"mine": []}, {"mine": settings})
    (stage,) = stages([claim(ahead("batch", "none"))], empty, quick=False)
    assert stage.seeds == {Arm("mine", m, 32): 4 for m in METHODS}
    setups = due(settings, stage.seeds, [])
    assert len(setups) == 3 * 4
    assert {(c.stage, c.batch_size, c.lr) for c in setups} == {("final", 32, 0.1)}
    assert time_left([stage], empty, quick=False) > stage.seconds > 0


def test_more_seeds_go_where_a_part_is_undecided(settings):
    runs = runs_of(settings, CLEAR | NEAR)
    clear, near = ahead("batch", "none"), ahead("layer", "batch")
    assert stages([claim(clear)], runs, quick=False) == []
    (stage,) = stages([claim(clear, near)], runs, quick=False)
    assert stage.seeds == {Arm("mine", "layer", 32): 8, Arm("mine", "batch", 32): 8}
    assert stages([claim(clear, dataclasses.replace(near, decides=False))], runs, quick=False) == []


def test_after_twenty_seeds_it_stays_undecided_and_says_what_it_would_take(settings):
    scores = {"batch": [0.9] * 20, "layer": [0.9 + 0.01 * (-1) ** k + 0.001 for k in range(20)]}
    runs = runs_of(settings, scores | {"none": [0.1] * 20})
    part = ahead("layer", "batch")
    answer = answer_of(part, runs, quick=False)
    assert answer.verdict == UNDECIDED
    assert len(answer.values) == 20
    assert "20 seeds do not decide" in answer.note
    assert "the design ends at 20" in answer.note
    assert stages([claim(part)], runs, quick=False) == []


def test_seeds_count_in_whole_looks_that_all_arms_have(settings):
    scores = {"batch": [0.9] * 11, "layer": [0.95, 0.96] * 5}
    runs = runs_of(settings, scores)
    values, arms, seeds = runs.at_look(ahead("layer", "batch").measure)
    assert (len(values), seeds) == (8, 8)
    assert arms == {Arm("mine", "layer", 32), Arm("mine", "batch", 32)}
    assert answer_of(ahead("layer", "batch"), runs, quick=False).verdict == HOLDS
    with pytest.raises(UnmeasuredError, match="none at batch size 32 is not finished"):
        runs.at_look(ahead("none", "batch").measure)


def test_a_gap_in_the_seeds_ends_an_arm(settings):
    found = [trial("batch", 32, seed, 0.9) for seed in (0, 1, 2, 4, 5)]
    assert len(Runs({"mine": found}, {"mine": settings}).finished(Arm("mine", "batch", 32))) == 3


def test_a_claim_with_a_verdict_waits(settings):
    runs = runs_of(settings, CLEAR | NEAR)
    clear, near, wrong = ahead("batch", "none"), ahead("layer", "batch"), ahead("none", "batch")
    decided, undecided = claim(clear, wrong, near, name="decided"), claim(clear, near, name="undecided")
    found = stages([decided, undecided], runs, quick=False)
    assert [(s.claim.name, s.decides) for s in found] == [("undecided", True), ("decided", False)]


def test_what_only_figures_and_asides_want_comes_last(settings):
    runs = runs_of(settings, CLEAR)
    clear, aside = ahead("batch", "none"), ahead("layer", "batch", decides=False)
    (stage,) = stages([claim(clear, aside)], runs, quick=False)
    assert stage.seeds == {Arm("mine", "layer", 32): 4}
    assert not stage.decides


def test_what_had_not_settled_is_said(settings):
    found = [trial("batch", size, seed, 0.9, rise=0.02 * (size == 2)) for size in (32, 2) for seed in range(4)]
    (said,) = limits_of(claim(), Runs({"mine": found}, {"mine": settings}))
    assert "still rose with batch at batch size 2 (mine)" in said


def test_a_rate_at_the_end_of_the_search_is_said(small_data):
    searched = dataclasses.replace(MINE, methods=("batch",), lrs=(0.01, 0.1), batch_sizes=(32,))
    settings = searched.settings(digits(), quick=False)
    mine = dataclasses.replace(claim(), experiments=(searched,))

    def said_of(best):
        scores = {lr: 0.9 - 0.1 * abs(math.log10(lr / best)) for lr in ladder(settings, 32)}
        tuned = [trial("batch", 32, k, s, lr=lr, stage="tune") for lr, s in scores.items() for k in settings.tune_seeds]
        final = [trial("batch", 32, seed, 0.9, lr=best) for seed in range(4)]
        return limits_of(mine, Runs({"mine": [*tuned, *final]}, {"mine": settings}))

    assert said_of(0.1) == []
    (said,) = said_of(100.0)
    assert "at an end of all that were tried with batch (mine)" in said


def test_only_trials_at_the_chosen_rate_count(settings):
    found = [trial("batch", 32, seed, 0.9, lr=0.3 if seed else None) for seed in range(4)]
    assert len(Runs({"mine": found}, {"mine": settings}).finished(Arm("mine", "batch", 32))) == 1
