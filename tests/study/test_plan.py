import dataclasses
import math

import pytest
from tiny_study import fake_trial, make_settings, tiny_data, tiny_model

from normwise.errors import InputError
from normwise.records import Setup
from normwise.study import compare, make_task
from normwise.study.comparison import make_settings as checked_settings
from normwise.study.plan import (
    default_epochs,
    due,
    scaled_lrs,
    total_setups,
    training_steps,
    tune_setups,
)
from normwise.study.standings import standings_at
from normwise.study.tuning import chosen_lr, tuning


def test_every_method_gets_the_same_search():
    settings = make_settings(["none", "batch", "group"], [2, 32])
    budgets = {}
    for setup in tune_setups(settings):
        budgets.setdefault((setup.method, setup.batch_size), []).append((setup.lr, setup.seed))
    assert len(budgets) == 6
    assert len({tuple(budget) for budget in budgets.values()}) == 1


def test_finals_follow_their_own_tuning_only():
    settings = make_settings(["none", "batch"])
    tuned = [fake_trial(c) for c in tune_setups(settings) if c.method == "batch"]
    finals = [c for c in due(settings, tuned) if c.stage == "final"]
    assert {c.method for c in finals} == {"batch"}
    assert [c.seed for c in finals] == settings.seeds
    everything = [fake_trial(c) for c in tune_setups(settings)]
    assert len(due(settings, everything)) == total_setups(settings)
    assert len({c.key for c in due(settings, everything)}) == total_setups(settings)


def test_plan_does_not_depend_on_the_order_of_results():
    settings = make_settings()
    trials = [fake_trial(c) for c in tune_setups(settings)]
    assert due(settings, trials) == due(settings, trials[::-1])


def test_tuning_seed_is_not_compared():
    settings = make_settings()
    assert not set(settings.tune_seeds) & set(settings.seeds)


def test_choice_prefers_score_then_loss_then_small_rate():
    def trial(lr, score, loss):
        return fake_trial(Setup("tune", "none", 2, lr, 9), score, valid_loss=loss)

    assert chosen_lr([trial(0.1, 0.8, 0.1), trial(0.2, 0.9, 0.9)]) == 0.2
    assert chosen_lr([trial(0.1, 0.9, 0.2), trial(0.2, 0.9, 0.1)]) == 0.2
    assert chosen_lr([trial(0.2, 0.9, 0.1), trial(0.1, 0.9, 0.1)]) == 0.1
    assert chosen_lr([trial(0.2, 0.1, None), trial(0.1, 0.1, 3.0)]) == 0.1


def test_rates_scale_with_the_root_of_the_batch():
    assert scaled_lrs([0.04], 2) == [0.01]
    assert scaled_lrs([0.4, 0.1], 32) == [0.1, 0.4]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32, 72])
def test_default_epochs_make_at_least_one_step(batch_size):
    assert training_steps(default_epochs(100, batch_size, 72), batch_size, 72) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["gruop"]}, "did you mean 'group'"),
        ({"methods": []}, "no method"),
        ({"batch_sizes": [0]}, "at least 1, got 0"),
        ({"batch_sizes": [73]}, "larger than the training data"),
        ({"batch_sizes": [2.5]}, "whole number"),
        ({"seeds": 1}, "at least 2"),
        ({"seeds": [-1, 0]}, "seeds must be"),
        ({"lrs": [0.0]}, "learning rates"),
        ({"epochs": float("nan")}, "epochs"),
    ],
)
def test_bad_settings_are_refused(task, arguments, message):
    with pytest.raises(InputError, match=message):
        checked_settings(task, **arguments)


def best_at(rates):
    """Tuning trials whose score falls with the distance, in steps, to each method's own best rate."""

    def trial(setup):
        return fake_trial(setup, 0.9 - 0.1 * abs(math.log(setup.lr / rates[setup.method], 2)))

    return trial


def search(settings, trial):
    """Run what is due in the search until it is over; every rate that was tried, method by method."""
    trials = []
    while setups := [c for c in tune_setups(settings, trials) if c.key not in {t.setup.key for t in trials}]:
        assert not any(c.stage == "final" for c in due(settings, trials))
        trials += map(trial, setups)
    tried = {}
    for t in trials:
        tried.setdefault(t.setup.method, set()).add(t.setup.lr)
    return tried, tuning(settings, trials, 2).chosen, trials


@pytest.mark.parametrize(
    ("none", "batch", "expected"),
    [
        (0.1, 0.1, [0.05, 0.1, 0.2]),  # inside from the start
        (0.1, 0.4, [0.05, 0.1, 0.2, 0.4, 0.8]),  # goes on until there is one above
        (0.025, 0.4, [0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8]),
        (0.1, 99.0, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6]),  # three steps beyond, and no more
    ],
)
def test_the_search_goes_on_until_the_best_rate_is_inside(none, batch, expected):
    settings = make_settings(search=3)
    tried, chosen, trials = search(settings, best_at({"none": none, "batch": batch}))
    assert tried["none"] == tried["batch"] == set(expected)  # the same budget for both
    assert chosen == {"none": none, "batch": min(batch, max(expected))}
    assert len(due(settings, trials)) == total_setups(settings, trials) == 2 * len(expected) + 2 * 3
    assert due(settings, trials) == due(settings, trials[::-1])


def test_an_edge_is_told_by_what_was_tried():
    settings = make_settings(search=3)
    for rate, edge in ((0.4, False), (99.0, True)):
        trial = best_at({"none": 0.1, "batch": rate})
        _, _, trials = search(settings, trial)
        trials += [trial(c) for c in due(settings, trials) if c.stage == "final"]
        standings, _ = standings_at(settings, trials, 2)
        assert {s.method: s.lr_at_edge for s in standings} == {"none": False, "batch": edge}


def test_rates_that_were_given_are_kept_to(task):
    assert checked_settings(task, lrs=[0.1, 0.2]).search == 0
    assert checked_settings(task).search == 3


def test_a_study_searches_beyond_its_grid(tmp_path):
    """From the first trial to the report, and resumed."""
    given = {"methods": ["none", "batch"], "batch_sizes": [8], "seeds": 2, "epochs": 1, "progress": False}
    task = dataclasses.replace(make_task(tiny_model, tiny_data()), lrs=(1e-5, 2e-5), lrs_at=8)
    study = compare(data=task, out=tmp_path, **given)
    tried = {t.setup.lr for t in study.trials if t.setup.stage == "tune"}
    assert {1e-5, 2e-5, 4e-5} <= tried
    assert compare(data=task, out=tmp_path, **given).record.trials == study.record.trials
