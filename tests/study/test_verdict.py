"""Every sentence of a verdict holds for the standings beside it, whatever the trials."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_study import fake_trial, make_settings

from normwise.records import DECIDED, UNDECIDED, Cell
from normwise.study.choice import PLAUSIBLE, SAME_COST, choose, same_cost
from normwise.study.pairs import above
from normwise.study.verdict import judge

METHODS = ("none", "batch", "layer", "group")
FLOOR = 0.1


def trials_of(scores, seconds=None, lost=(), sizes=None):
    """``scores``: method → one score per seed; ``lost``: (method, seed) that diverged."""
    found = []
    for method, values in scores.items():
        for seed, value in enumerate(values):
            given = {"step_seconds": (seconds or {}).get(method, 0.01), "peak_bytes": (sizes or {}).get(method, 1000)}
            if (method, seed) in lost:
                given |= {"state": "diverged", "reason": "the loss became nan"}
                value = FLOOR
            found.append(fake_trial(Cell("final", method, 2, 0.1, seed), value, **given))
    return found


def said(method):
    return "no normalization" if method == "none" else method


@st.composite
def studies(draw):
    methods = METHODS[: draw(st.integers(1, 4))]
    seeds = draw(st.integers(2, 4))
    level = st.sampled_from([0.1, 0.3, 0.5, 0.52, 0.9, 1.0])
    jitter = st.sampled_from([-0.05, -0.002, 0.0, 0.002, 0.05])
    scores = {m: [draw(level) + draw(jitter) for _ in range(seeds)] for m in methods}
    if draw(st.booleans()):
        scores = {m: [base + draw(jitter) for _ in range(seeds)] for m in methods for base in [draw(level)]}
    seconds = {m: draw(st.sampled_from([0.01, 0.0105, 0.012, 0.03])) for m in methods}
    sizes = {m: draw(st.sampled_from([1000, 1050, 3000])) for m in methods}
    lost = {(m, s) for m in methods for s in range(seeds) if draw(st.sampled_from([False, False, False, True]))}
    floor = draw(st.sampled_from([None, FLOOR]))
    made = make_settings(methods, seeds=range(seeds), floor=floor)
    return made, trials_of(scores, seconds, lost, sizes)


@settings(max_examples=120, deadline=None)
@given(studies())
def test_no_sentence_contradicts_the_numbers(study):
    made, trials = study
    standings, (verdict,) = judge(made, trials)
    by_name = {said(s.method): s for s in standings}
    tied = [s for s in standings if s.tied]
    use, best = next(s for s in standings if s.method == verdict.use), standings[0]
    text = " ".join([verdict.headline, *verdict.why, *verdict.cautions])
    assert verdict.outcome in DECIDED + UNDECIDED
    if verdict.outcome in UNDECIDED:
        assert verdict.confidence == 0
        assert " use " not in text
        assert ("decides nothing" in verdict.headline) == (verdict.outcome != "lost")
    if verdict.outcome in DECIDED and made.floor is not None:
        assert best.valid.value > made.floor
    if verdict.outcome == "equal":
        assert all(s.behind.value == pytest.approx(0, abs=1e-9) for s in standings[1:])
    assert verdict.clear == (verdict.outcome == "clear") == ("ahead of every other" in text)
    if verdict.clear:
        assert all(s.behind.low > 0 for s in standings[1:])
    # Each reason names methods for which it is true, and no method twice.
    headline = verdict.headline.partition(": ")[2]
    if "each of them lost runs" in headline:
        assert all(s.diverged for s in tied)
    if "scored highest" in headline:
        assert use is best
    if "it is the cheapest" in headline:
        assert all(use.step_seconds * (1 + SAME_COST) < s.step_seconds for s in tied if s is not use)
    for name, count, runs in re.findall(r"(\w[\w ]*?) (?:diverged|failed) in (\d) of (\d) runs", text):
        s = by_name[name.lower().rpartition(". ")[2]]
        assert int(count) == s.diverged > 0
        assert int(runs) == s.runs
    for name in re.findall(r"(\w[\w ]*?) is \S+ points behind, but its", text):
        s = by_name[name.lower()]
        assert s.tied
        assert s.behind.low <= 1e-9


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_each_method_is_passed_over_for_a_reason_that_holds(data):
    count = data.draw(st.integers(1, 5))
    near = [data.draw(st.sampled_from([0.0, 0.1, 0.2, 0.9])) for _ in range(count)]
    lost = [data.draw(st.booleans()) for _ in range(count)]
    costs = [
        (data.draw(st.sampled_from([1.0, 1.05, 1.12, 1.3, math.inf])), data.draw(st.sampled_from([10.0, 10.5, 30.0])))
        for _ in range(count)
    ]
    choice = choose(near, lost, costs)
    use = choice.place
    sets = [[use], *choice[1:]]
    assert sorted(k for places in sets for k in places) == list(range(count))
    candidates = [k for k in range(count) if k not in choice.lost + choice.far]
    assert all(lost[k] and not lost[use] for k in choice.lost)
    assert all(near[k] < PLAUSIBLE for k in choice.far)
    assert all(costs[k][0] > min(costs[j][0] for j in candidates) * (1 + SAME_COST) for k in choice.slow)
    assert all(costs[k][0] > costs[use][0] for k in choice.slow)
    assert all(costs[k][1] > costs[use][1] for k in choice.heavy)
    assert all(k > use for k in choice.lower)


def test_reasons_name_those_that_they_are_true_of():
    scores = {
        "none": [0.9, 0.8, 0.85],
        "batch": [0.88, 0.82, 0.84],
        "layer": [0.8, 0.9, 0.84],
        "group": [0.5, 0.9, 0.7],
    }
    seconds = {"none": 0.01, "batch": 0.03, "layer": 0.01, "group": 0.001}
    _, (verdict,) = judge(make_settings(METHODS), trials_of(scores, seconds, {("layer", 0)}))
    assert verdict.use == "none"
    assert verdict.headline.partition(": ")[2] == (
        "it scored highest, layer lost runs, group rarely comes near the highest and batch takes longer per step."
    )


def test_nothing_learned_decides_nothing():
    scores = {"none": [0.10, 0.11, 0.09], "batch": [0.11, 0.10, 0.09]}
    _, (verdict,) = judge(make_settings(floor=0.1), trials_of(scores))
    assert verdict.outcome == "unlearned"
    assert verdict.headline == (
        "At batch size 2 no method is shown to have learned anything, so this decides nothing: the best score, 10.0 %, "
        "is not reliably above 10.0 %, which takes no training."
    )
    assert "Train longer" in verdict.cautions[-1]


def test_chance_is_rarely_taken_for_learning_and_learning_never_for_chance():
    """Simulated with seven methods: without anything learned, and with as little as two deviations a seed."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        scores = 0.1 + rng.normal(0, 0.02, (7, 3))
        alarms += above(scores, int(scores.mean(axis=1).argmax()), 0.1)
        assert above(scores + 0.06, int(scores.mean(axis=1).argmax()), 0.1)
    assert alarms / 300 < 0.2


def test_equal_runs_decide_nothing():
    scores = {"none": [0.6, 0.7, 0.8], "batch": [0.6, 0.7, 0.8]}
    _, (verdict,) = judge(make_settings(floor=0.1), trials_of(scores))
    assert verdict.outcome == "equal"
    assert "every method scored the same in every run, so this decides nothing" in verdict.headline


def test_both_kinds_of_sureness_are_told():
    """Never far behind the best, and rarely the best: the two are different things."""
    scores = {"none": [0.800, 0.801, 0.802], "batch": [0.801, 0.802, 0.8035]}
    _, (verdict,) = judge(make_settings(), trials_of(scores, {"none": 0.001, "batch": 0.01}))
    assert verdict.confidence == 1
    assert verdict.use == "batch"
    scores = {"none": [0.800, 0.803, 0.802], "batch": [0.802, 0.802, 0.8035]}
    _, (verdict,) = judge(make_settings(), trials_of(scores, {"none": 0.001, "batch": 0.01}))
    assert (verdict.use, verdict.confidence) == ("none", 1)
    assert verdict.probability_best < 0.5


def test_step_times_within_their_noise_are_no_reason():
    """Each method is 15 % faster than the other at some seeds: neither is the cheaper one."""
    rows = [[math.log(t) for t in row] for row in ([0.0100, 0.0125, 0.0105, 0.0120], [0.0122, 0.0104, 0.0119, 0.0102])]
    assert same_cost(rows) > 0.2
    steady = [[math.log(t * k) for t in (1.0, 1.7, 1.2)] for k in (0.01, 0.013)]
    assert same_cost(steady) == SAME_COST  # a busy seed slows all alike
    assert 0 < PLAUSIBLE < 1


def test_confidence_in_cost_covers_the_true_difference():
    """Simulated: two methods of equal cost are called different in about one study of twenty."""
    rng, different = np.random.default_rng(0), 0
    for _ in range(400):
        rows = rng.normal(0, 0.2, (2, 5)) + rng.normal(0, 0.3, 5)
        different += abs(rows[0].mean() - rows[1].mean()) > math.log1p(same_cost(rows))
    assert 5 <= different <= 35
