import dataclasses

import numpy as np
import pytest
from races import NAMES, noisy, run_to_the_end
from tiny_study import make_settings

from normwise.study import racing
from normwise.study.choice import same_cost, trained_times
from normwise.study.forecast import advice, forecast
from normwise.study.verdict import judge

SAME = ((1.0, 1.0),)


def draw(seed, count=5, n=10, spread=0.01, scatter=0.01):
    """Scores of a study with random levels, and costs."""
    rng = np.random.default_rng(seed)
    scores = 0.8 + rng.normal(0, spread, (count, 1)) + rng.normal(0, scatter, (count, n)) + rng.normal(0, 0.02, n)
    return scores, tuple((float(c), 1.0) for c in rng.choice([1.0, 1.2, 1.5], count))


def test_advice_is_that_of_the_verdict():
    same = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        levels = dict(zip(NAMES, 0.8 + rng.normal(0, 0.01, len(NAMES)), strict=True))
        costs = dict(zip(NAMES, rng.choice([1.0, 1.2, 1.5], len(NAMES)), strict=True))
        settings = make_settings(NAMES, seeds=range(6))
        trials = run_to_the_end(settings, noisy(levels, 0.01, seed, costs))
        score = {(t.setup.method, t.setup.seed): t.valid_score for t in trials if t.setup.stage == "final"}
        scores = np.array([[[score[m, s] for s in settings.seeds] for m in NAMES]])
        given = (False,) * len(NAMES), tuple((costs[m], 1000.0) for m in NAMES)
        same.append(NAMES[advice(scores, *given, settings.tolerance)[0]] == judge(settings, trials)[1][0].use)
    assert np.mean(same) > 0.9


@pytest.mark.parametrize("n", [5, 7])
def test_probabilities_come_true(n):
    """Of all advice that the full grid would keep with a probability of p, a share of about p is kept."""
    told, kept = [], []
    for seed in range(400):
        scores, costs = draw(seed)
        lost = (False,) * len(scores)
        told.append(forecast(tuple(map(tuple, scores[:, :n].tolist())), 10, lost, costs, 0.005).same)
        now, then = (advice(part[None], lost, costs, 0.005)[0] for part in (scores[:, :n], scores))
        kept.append(now == then)
    told, kept = np.array(told), np.array(kept)
    # An error on the cautious side costs some trials and no advice.
    assert -0.08 < told.mean() - kept.mean() < 0.03
    for low, high in ((0.0, 0.7), (0.7, 0.95), (0.95, 1.01)):
        part = (told >= low) & (told < high)
        assert part.sum() > 40
        assert abs(told[part].mean() - kept[part].mean()) < 0.1, (low, told[part].mean(), kept[part].mean())


def test_gain_is_what_the_other_seeds_bring():
    """Among equal methods of equal cost nothing but the true level counts: gain foretold and gain had agree."""
    told, had = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        levels = rng.normal(0, 0.01, 4)
        scores = levels[:, None] + rng.normal(0, 0.02, (4, 10))
        lost, costs = (False,) * 4, SAME * 4
        told.append(forecast(tuple(map(tuple, scores[:, :5].tolist())), 10, lost, costs, 0.005).gain)
        now, then = (advice(part[None], lost, costs, 0.005)[0] for part in (scores[:, :5], scores))
        had.append(levels[then] - levels[now])
    assert np.mean(told) > 0
    assert abs(np.mean(told) - np.mean(had)) < 2.5 * np.std(had) / len(had) ** 0.5 + 0.0005


def test_a_method_that_lost_runs_is_not_foretold():
    rows = ((0.9, 0.91, 0.92, 0.9, 0.91), (0.91, 0.9, 0.91, 0.91, 0.9))
    whole, lossy = (forecast(rows, 10, lost, SAME * 2, 0.02) for lost in ((False, False), (True, False)))
    assert whole.same < 0.9
    assert lossy.same > 0.95
    assert forecast(rows, 10, (False, False), SAME * 2, 0.02) is whole


def test_what_counts_as_equal_cost_is_the_verdicts_rule(monkeypatch):
    """Step times of the training so far that scatter are no reason, in the race as in the verdict."""
    scores, lost, costs = (
        np.array([[[0.90, 0.92, 0.91], [0.905, 0.91, 0.92]]]),
        (False, False),
        ((1.3, 1.0), (1.0, 1.0)),
    )
    assert advice(scores, lost, ((1.0, 1.0), (1.3, 1.0)), 0.005)[0] == 0
    assert advice(scores, lost, costs, 0.005)[0] == 1
    assert advice(scores[:, ::-1], lost, costs, 0.005, same=0.5)[0] == 0
    levels, asked = {"none": 0.9, "batch": 0.9}, []

    def decided(**given):
        asked.append(given["same"])
        return forecast(**given)

    monkeypatch.setattr(racing, "forecast", decided)
    score = noisy(levels, 0.01)

    def trial(setup):
        swing = 1.5 if (setup.seed + len(setup.method)) % 2 else 1.0
        return dataclasses.replace(score(setup), step_seconds=0.01 * swing)

    settings = make_settings(list(levels), seeds=range(6), race=True)
    trials = run_to_the_end(settings, trial)
    finals = [t for t in trials if t.setup.stage == "final" and t.setup.seed < racing.ENOUGH]
    assert asked[0] == same_cost(trained_times(finals, settings.methods)) > 0.3
