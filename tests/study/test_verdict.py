"""Every sentence of a verdict holds for the standings beside it, whatever the trials."""

import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_study import fake_trial, make_settings

from normwise import report
from normwise.records import DECIDED, UNDECIDED, Point, Setup, StepCost, dumps
from normwise.study.choice import PLAUSIBLE, SAME_COST, choose, same_cost
from normwise.study.pairs import above
from normwise.study.stored import draw_up
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
            found.append(fake_trial(Setup("final", method, 2, 0.1, seed), value, **given))
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
    same_as = {"as_is": methods[-1]} if draw(st.booleans()) else {}
    made = make_settings(methods, seeds=range(seeds), floor=floor, same_as=same_as)
    tuning = [
        fake_trial(Setup("tune", m, 2, lr, seed), scores[m][0] + draw(jitter))
        for seed in range(1000, 1000 + draw(st.integers(1, 2)))
        for m in methods
        for lr in (0.1, 0.2)
    ]
    trials = tuning * draw(st.booleans()) + trials_of(scores, seconds, lost, sizes)
    noise = draw(st.sampled_from([0.0, 0.02, 0.3]))
    blocks = [draw(st.sampled_from([1 - noise, 1 + noise])) for _ in range(5)]
    timed = [m for m in methods if draw(st.sampled_from([True, True, True, False]))] * draw(st.booleans())
    costs = [StepCost(m, 2, [seconds[m] * b for b in blocks[k:] + blocks[:k]], sizes[m]) for k, m in enumerate(timed)]
    return made, trials, costs


@settings(max_examples=120, deadline=None)
@given(studies())
def test_no_sentence_contradicts_the_numbers(study):
    made, trials, costs = study
    standings, (verdict,) = judge(made, trials, costs)
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
    check_costs(standings, costs, text)
    check_rates(made, trials, standings, verdict)
    assert ("was trained once" in text) == bool(made.same_as and verdict.outcome != "lost")
    for name, count, runs in re.findall(r"(\w[\w ]*?) (?:diverged|failed) in (\d) of (\d) runs", text):
        s = by_name[name.lower().rpartition(". ")[2]]
        assert int(count) == s.diverged > 0
        assert int(runs) == s.runs
    for name in re.findall(r"(\w[\w ]*?) is \S+ points behind, but its", text):
        s = by_name[name.lower()]
        assert s.tied
        assert s.behind.low <= 1e-9


def check_costs(standings, costs, text):
    """Times are those of the turns where all that came through were timed, else those of the training."""
    through = {s.method for s in standings if s.diverged < s.runs}
    in_turn = bool(through) and through <= {c.method for c in costs}
    for s in standings:
        assert (s.step_interval is not None) == (in_turn and s.method in through)
        if s.step_interval is not None:
            of_one = next(c for c in costs if c.method == s.method)
            assert min(of_one.seconds) * 0.999 <= s.step_seconds <= max(of_one.seconds) * 1.001
            assert s.step_interval.low <= s.step_seconds <= s.step_interval.high
            assert s.peak_bytes == of_one.peak_bytes
    assert "timed in turn" not in text or in_turn
    assert "in training, other work" not in text or not in_turn
    if found := re.search(r"differences of up to (\d+) % between step times count as none", text):
        assert int(found[1]) >= round(SAME_COST * 100)
    if found := re.search(r"takes ([\d.]+) ms.*; the (longest|shortest), with (\w[\w ]*?), takes ([\d.]+) ms", text):
        one, other = float(found[1]), float(found[4])
        assert other > one * (1 + SAME_COST) if found[2] == "longest" else one > other * (1 + SAME_COST)


def check_rates(made, trials, standings, verdict):
    """What is said of learning rates is true of the trials that chose them."""
    sentences = [c for c in verdict.cautions if "choice of the learning rate may have decided" in c]
    assert len(sentences) == verdict.lr_decided
    if not sentences:
        return
    assert verdict.outcome in DECIDED
    pattern = (
        r"decided: (.+?) and (.+?) are (\S+) points apart, .* scores of (.+?) at (\S+) and (\S+), .* by (\S+) points"
    )
    use, rival, gap, method, lr, other, apart = re.search(pattern, sentences[0]).groups()
    by_name = {said(s.method): s for s in standings}
    assert by_name[use].method == verdict.use != by_name[rival].method
    assert method in (use, rival)
    assert float(gap) == pytest.approx(abs(by_name[use].valid.value - by_name[rival].valid.value) * 100, abs=0.06)
    means = {}
    for t in trials:
        if t.setup.stage == "tune" and t.setup.method == by_name[method].method:
            means.setdefault(t.setup.lr, []).append(t.valid_score)
    apart_there = abs(np.mean(means[float(lr)]) - np.mean(means[float(other)]))
    assert float(lr) == by_name[method].lr
    assert float(apart) == pytest.approx(apart_there * 100, abs=0.06)
    assert apart_there > made.tolerance
    assert float(gap) <= float(apart) + 0.1


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
        "batch": [0.9, 0.8, 0.848],
        "layer": [0.8, 0.9, 0.84],
        "group": [0.5, 0.9, 0.7],
    }
    seconds = {"none": 0.01, "batch": 0.03, "layer": 0.01, "group": 0.001}
    _, (verdict,) = judge(make_settings(METHODS), trials_of(scores, seconds, {("layer", 0)}))
    assert verdict.use == "none"
    assert verdict.headline.partition(": ")[2] == (
        "it scored highest, layer lost runs, group mostly stays behind the highest and batch takes longer per step."
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


def tuned(scores, seeds=(1000,)):
    """``scores``: method → rate → the score of the search, with a scatter that the final runs have, too."""
    return [
        fake_trial(Setup("tune", m, 2, lr, seed), score)
        for m, rates in scores.items()
        for lr, score in rates.items()
        for seed in seeds
    ]


CLOSE = {"none": [0.80, 0.83, 0.80], "batch": [0.83, 0.81, 0.82]}


@pytest.mark.parametrize(
    ("rates", "decided"),
    [
        ({0.1: 0.82, 0.2: 0.80}, True),  # as good, and further apart than the methods
        ({0.1: 0.82, 0.2: 0.60}, False),  # clearly worse
        ({0.1: 0.82, 0.2: 0.818}, False),  # too near to each other to matter
    ],
)
def test_it_is_told_where_the_choice_of_a_rate_may_have_decided(rates, decided):
    trials = tuned({"none": {0.1: 0.8, 0.2: 0.5}, "batch": rates}) + trials_of(CLOSE)
    _, (verdict,) = judge(make_settings(), trials)
    assert verdict.lr_decided == decided
    told = [c for c in verdict.cautions if "The choice of the learning rate may have decided" in c]
    expected = (
        "The choice of the learning rate may have decided: batch and no normalization are 1.0 points apart, while the "
        "scores of batch at 0.1 and 0.2, two rates that the search does not tell apart, differ by 2.0 points."
    )
    assert told == [expected] * decided


def test_a_lead_that_no_rate_could_turn_is_not_doubted():
    trials = tuned({"none": {0.1: 0.5, 0.2: 0.49}, "batch": {0.1: 0.82, 0.2: 0.80}})
    trials += trials_of({"none": [0.5, 0.52, 0.51], "batch": [0.83, 0.81, 0.82]})
    _, (verdict,) = judge(make_settings(), trials)
    assert verdict.clear
    assert not verdict.lr_decided


def test_unsettled_training_is_told_in_every_output():
    curve = [Point(k, 1.0, 0.5, 0.5 + 0.02 * k) for k in range(1, 7)]
    trials = [dataclasses.replace(t, curve=curve) for t in trials_of({"none": [0.62] * 3, "batch": [0.6, 0.62, 0.63]})]
    study = draw_up(make_settings(), {}, trials)
    told = "Training has not settled: between the last two points of the curves the score still rose with"
    assert any(caution.startswith(told) for caution in study.verdicts[0].cautions)
    for text in (report.plain(study), report.html(study), dumps(study)):
        assert told in " ".join(text.split())
    settled = [dataclasses.replace(t, curve=[*curve[:-1], dataclasses.replace(curve[-2], step=6)]) for t in trials]
    assert "settled" not in report.plain(draw_up(make_settings(), {}, settled))
