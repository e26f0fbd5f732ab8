"""More seeds where the choice of a rate is a close call, for all methods alike."""

import itertools

import numpy as np
import pytest
from simulated import tune
from tiny_study import fake_trial, make_settings

from normwise.study.plan import due, total_setups
from normwise.study.tuning import by_merit, tuning

SEEDS = [1000, 1001, 1002]


def settings_of(methods=("none", "batch"), **changes):
    return make_settings(methods, **{"tune_seeds": SEEDS, "tune_ties": 2} | changes)


def finish(settings, score, backwards=False):
    """Run what is due until the search is over; give its trials."""
    trials = []
    while setups := [
        c for c in due(settings, trials) if c.stage == "tune" and c.key not in {t.setup.key for t in trials}
    ]:
        assert not any(c.stage == "final" for c in due(settings, trials))
        trials += [fake_trial(c, score(c)) for c in (setups[::-1] if backwards else setups)]
    return trials


def seeds_of(trials):
    """Method → rate → seeds that it was run on."""
    found = {}
    for t in trials:
        found.setdefault(t.setup.method, {}).setdefault(t.setup.lr, []).append(t.setup.seed)
    return found


FAR = {0.05: 0.6, 0.1: 0.9, 0.2: 0.7}
CLOSE = {0.05: 0.6, 0.1: 0.90, 0.2: 0.89}


def test_clear_choices_take_one_seed():
    trials = finish(settings_of(), lambda c: FAR[c.lr])
    assert seeds_of(trials) == dict.fromkeys(["none", "batch"], dict.fromkeys(FAR, SEEDS[:1]))


def test_a_close_call_takes_more_seeds_of_the_two_best_rates_of_every_method():
    trials = finish(settings_of(), lambda c: (CLOSE if c.method == "batch" else FAR)[c.lr] + 0.01 * (c.seed % 2))
    assert seeds_of(trials)["batch"] == {0.05: SEEDS[:1], 0.1: SEEDS[:2], 0.2: SEEDS[:2]}
    assert {len(seeds) for seeds in seeds_of(trials)["none"].values()} == {1, 2}
    budgets = [sum(map(len, rates.values())) for rates in seeds_of(trials).values()]
    assert budgets == [5, 5]


def test_more_seeds_change_the_choice():
    """On the first seed chance prefers the higher rate."""

    def score(setup):
        luck = 0.02 if (setup.lr, setup.seed) == (0.2, SEEDS[0]) else 0.0
        return CLOSE[setup.lr] + luck + 0.004 * ((setup.seed * 7 + round(setup.lr * 100)) % 3 - 1)

    one = settings_of(tune_seeds=SEEDS[:1], tune_ties=0)
    assert tuning(one, finish(one, score), 2).chosen == {"none": 0.2, "batch": 0.2}
    more = settings_of()
    trials = finish(more, score)
    assert tuning(more, trials, 2).chosen == {"none": 0.1, "batch": 0.1}
    assert len(seeds_of(trials)["batch"][0.1]) == 3


def test_a_method_far_behind_asks_for_nothing():
    trials = finish(settings_of(), lambda c: CLOSE[c.lr] - 0.4 if c.method == "none" else FAR[c.lr])
    assert all(seeds == SEEDS[:1] for rates in seeds_of(trials).values() for seeds in rates.values())


def test_rates_that_are_equal_to_an_effect_that_does_not_matter_ask_for_no_more():
    trials = finish(settings_of(), lambda c: {0.05: 0.6, 0.1: 0.9, 0.2: 0.899}[c.lr])
    assert {len(seeds) for seeds in seeds_of(trials)["batch"].values()} == {1, 2}


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_any_results_gives_one_plan(seed):
    """Scores at random: the same trials and rates whichever finishes first, the same budget, ends told rightly."""
    rng = np.random.default_rng(seed)
    settings = settings_of(("none", "batch", "layer"), search=int(rng.integers(3)), tune_ties=int(rng.integers(3)))
    levels = {m: 0.8 + rng.normal(0, 0.03) for m in settings.methods}

    def score(setup):
        own = np.random.default_rng([seed, setup.seed, round(setup.lr * 10_000), settings.methods.index(setup.method)])
        return levels[setup.method] + own.normal(0, 0.02)

    one, other = finish(settings, score), finish(settings, score, backwards=True)
    assert {t.setup.key for t in one} == {t.setup.key for t in other}
    found = tuning(settings, one, 2)
    assert found == tuning(settings, other[::-1], 2)
    assert len({sum(map(len, rates.values())) for rates in seeds_of(one).values()}) == 1
    assert due(settings, one) == due(settings, other)
    assert total_setups(settings, one) == len(one) + 3 * 3
    for method, rates in seeds_of(one).items():
        assert len(rates[found.chosen[method]]) == max(map(len, rates.values())) <= len(SEEDS)


def test_one_rate_needs_no_search():
    settings = settings_of(lrs={"2": [0.1]})
    assert len(finish(settings, lambda c: 0.9)) == 2


def test_merit_is_score_then_loss_then_small_rate():
    trials = [fake_trial(c, 0.9) for c in tuning(settings_of(("none",)), [], 2).setups]
    assert by_merit(trials) == [0.05, 0.1, 0.2]
    for order in itertools.permutations(trials):
        assert by_merit(order) == [0.05, 0.1, 0.2]


def test_equal_methods_that_are_tuned_apart_end_nearer_to_each_other():
    """Simulated: with seeds that scatter by two tolerances."""
    apart = {}
    for ties in (0, 2):
        settings = make_settings(tune_seeds=SEEDS[: 1 + ties], tune_ties=ties)
        apart[ties] = [tune(settings, 0.01, seed).apart for seed in range(60)]
    assert np.mean(apart[2]) < 0.75 * np.mean(apart[0])
