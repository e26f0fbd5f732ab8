import numpy as np
import pytest
import scipy.stats
from tiny_study import fake_trial, make_settings

from normwise.records import Interval, Setup
from normwise.study.choice import choose
from normwise.study.pairs import stretch
from normwise.study.standings import interval_of, resampled_means, share_near_best, standings_at
from normwise.study.verdict import judge


def final_trials(scores, batch_size=2, **changes):
    """``scores``: method → one score per seed."""
    trials = []
    for method, values in scores.items():
        for seed, value in enumerate(values):
            extra = {k: v[method] for k, v in changes.items() if method in v}
            trials.append(fake_trial(Setup("final", method, batch_size, 0.1, seed), value, **extra))
    return trials


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_interval_covers_the_mean_of_normal_data(n):
    data = np.random.default_rng(n).normal(size=(3000, n))
    low, high = np.quantile(resampled_means(data, 999), [0.025, 0.975], axis=1)
    coverage = ((low <= 0) & (high >= 0)).mean()
    assert 0.92 < coverage < 0.97


def test_interval_is_near_student_t():
    data = np.random.default_rng(0).normal(size=(1, 12))
    low, high = np.quantile(resampled_means(data), [0.025, 0.975], axis=1)
    exact = scipy.stats.t.interval(0.95, 11, data.mean(), scipy.stats.sem(data[0]))
    assert (low[0], high[0]) == pytest.approx(exact, abs=0.15 * (exact[1] - exact[0]))


def test_stretch_by_hand():
    # t(0.975, 2) = 4.30265, z = 1.95996, √(3/2) = 1.22474
    assert stretch(3) == pytest.approx(4.30265 / 1.95996 * 1.22474, rel=1e-4)


def test_equal_differences_have_an_interval_without_width():
    assert interval_of(0.25, np.full(99, 0.25)) == Interval(0.25, 0.25, 0.25)
    scores = {"none": [0.5, 0.6, 0.7], "batch": [0.7, 0.8, 0.9]}
    found, _ = standings_at(make_settings(), final_trials(scores), 2)
    assert [s.method for s in found] == ["batch", "none"]
    gap = found[1].behind
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.2, 0.2, 0.2))
    assert not found[1].tied


def test_differences_are_paired_by_seed():
    """Seeds differ far more than methods: only pairing can tell the methods apart."""
    scores = {"none": [0.20, 0.50, 0.80], "batch": [0.25, 0.56, 0.85]}
    _, verdicts = judge(make_settings(), final_trials(scores))
    assert verdicts[0].clear
    assert verdicts[0].use == "batch"


def test_tie_advises_the_cheapest_and_says_so():
    scores = {"none": [0.80, 0.90, 0.866], "batch": [0.90, 0.81, 0.86]}
    trials = final_trials(scores, step_seconds={"none": 0.001, "batch": 0.01})
    _, (verdict,) = judge(make_settings(), trials)
    assert not verdict.clear
    assert verdict.best == "batch"
    assert verdict.use == "none"
    assert verdict.tied == ["batch", "none"]
    assert "no clear winner" in verdict.headline
    assert "cheapest" in verdict.headline


def test_equal_scores_are_a_tie():
    found, _ = standings_at(make_settings(), final_trials({"none": [0.5] * 3, "batch": [0.5] * 3}), 2)
    assert [s.tied for s in found] == [True, True]
    assert [s.probability_best for s in found] == [0.5, 0.5]


def test_advice_avoids_methods_that_lost_runs():
    scores = {"none": [0.1, 0.9, 0.9], "batch": [0.9, 0.6, 0.9]}
    trials = final_trials(scores, step_seconds={"none": 0.001, "batch": 0.01})
    trials[0] = fake_trial(trials[0].setup, 0.1, state="diverged", reason="the loss became nan", step_seconds=0.001)
    _, (verdict,) = judge(make_settings(), trials)
    assert "none" in verdict.tied
    assert verdict.use == "batch"
    assert any("diverged in 1 of 3 runs: the loss became nan." in text for text in verdict.why)


def test_every_run_lost_is_said():
    trials = [
        fake_trial(t.setup, 0.1, state="failed", reason="ValueError: no") for t in final_trials({"none": [0.1] * 3})
    ]
    _, (verdict,) = judge(make_settings(["none"]), trials)
    assert "no method trained" in verdict.headline
    assert verdict.confidence == 0
    assert verdict.why == ["No normalization failed in 3 of 3 runs: ValueError: no."]


def test_known_winner_is_found_and_null_is_not():
    """Simulated: a method 10 points better wins clearly; equal methods are rarely told apart."""
    rng = np.random.default_rng(0)
    false_alarms = 0
    for _ in range(40):
        base = rng.normal(0.7, 0.03, 5)
        better = base + 0.1 + rng.normal(0, 0.005, 5)
        _, (verdict,) = judge(
            make_settings(seeds=range(5)), final_trials({"none": base.tolist(), "batch": better.tolist()})
        )
        assert (verdict.use, verdict.clear) == ("batch", True)
        equal = base + rng.normal(0, 0.01, 5)
        _, (verdict,) = judge(
            make_settings(seeds=range(5)), final_trials({"none": base.tolist(), "batch": equal.tolist()})
        )
        false_alarms += verdict.clear
    assert false_alarms <= 6


def test_confidence_counts_resamples_near_the_highest():
    means = np.array([[0.90, 0.80, 0.900], [0.80, 0.90, 0.902]])
    assert share_near_best(means, 0, tolerance=0.005) == pytest.approx(2 / 3)


def test_cheapest_is_time_then_memory_then_score():
    costs = [(0.0105, 1000.0), (0.02, 10.0), (0.0100, 2000.0)]  # best first
    whole, near = [False] * 3, [0.5] * 3
    assert choose(near, whole, costs).place == 0
    assert choose(near, whole, [(0.01, 2000.0), (0.02, 10.0), (0.0095, 1000.0)]).place == 2
    assert choose(near, whole, [(0.01, 1000.0), (0.02, 10.0), (0.0095, 1050.0)]).place == 0
    assert choose([0.5, 0.5, 0.1], whole, [(0.02, 1.0), (0.02, 1.0), (0.01, 1.0)]).place == 0


def test_one_that_lost_runs_is_chosen_only_if_all_did():
    same = [(0.01, 1.0)] * 2
    assert choose([0.9, 0.0], [True, False], same).place == 1
    assert choose([0.9, 0.0], [True, True], same).place == 0


def test_cheap_but_far_below_is_not_advised():
    """Tied only because three seeds scatter widely: 25 points below, and never near the top."""
    scores = {"none": [0.10, 0.20, 0.30], "batch": [0.22, 0.48, 0.66]}
    trials = final_trials(scores, step_seconds={"none": 0.001, "batch": 0.01})
    _, (verdict,) = judge(make_settings(), trials)
    assert verdict.tied == ["batch", "none"]
    assert verdict.use == "batch"
    assert "no normalization mostly stays behind the highest" in verdict.headline


def test_verdicts_are_the_same_every_time():
    trials = final_trials({"none": [0.8, 0.9, 0.7], "batch": [0.9, 0.7, 0.81]})
    assert judge(make_settings(), trials) == judge(make_settings(), list(reversed(trials)))


def test_cautions_name_what_limits_the_verdict():
    scores = {"none": [0.90, 0.91, 0.92], "batch": [0.996, 0.997, 0.998]}
    trials = final_trials(scores, test_score={"none": 0.99, "batch": 0.9})
    edge = [fake_trial(Setup(t.setup.stage, t.setup.method, 2, 0.2, t.setup.seed), t.valid_score) for t in trials[3:]]
    edge = [fake_trial(t.setup, t.valid_score, test_score=0.9) for t in edge]
    _, (verdict,) = judge(make_settings(quick=True), trials[:3] + edge)
    text = " ".join(verdict.cautions)
    for part in ("quick run", "edge of what was tried for batch (0.2)", "disagree", "close to 100 %"):
        assert part in text
