import pytest
from tiny_study import fake_trial, make_settings

from normwise.errors import InputError
from normwise.records import Cell
from normwise.study.comparison import make_settings as checked_settings
from normwise.study.plan import chosen_lr, default_epochs, due, scaled_lrs, total_cells, training_steps, tune_cells


def test_every_method_gets_the_same_search():
    settings = make_settings(["none", "batch", "group"], [2, 32])
    budgets = {}
    for cell in tune_cells(settings):
        budgets.setdefault((cell.method, cell.batch_size), []).append((cell.lr, cell.seed))
    assert len(budgets) == 6
    assert len({tuple(budget) for budget in budgets.values()}) == 1


def test_finals_follow_their_own_tuning_only():
    settings = make_settings(["none", "batch"])
    tuned = [fake_trial(c) for c in tune_cells(settings) if c.method == "batch"]
    finals = [c for c in due(settings, tuned) if c.stage == "final"]
    assert {c.method for c in finals} == {"batch"}
    assert [c.seed for c in finals] == settings.seeds
    everything = [fake_trial(c) for c in tune_cells(settings)]
    assert len(due(settings, everything)) == total_cells(settings)
    assert len({c.key for c in due(settings, everything)}) == total_cells(settings)


def test_plan_does_not_depend_on_the_order_of_results():
    settings = make_settings()
    trials = [fake_trial(c) for c in tune_cells(settings)]
    assert due(settings, trials) == due(settings, trials[::-1])


def test_tuning_seed_is_not_compared():
    settings = make_settings()
    assert not set(settings.tune_seeds) & set(settings.seeds)


def test_choice_prefers_score_then_loss_then_small_rate():
    def trial(lr, score, loss):
        return fake_trial(Cell("tune", "none", 2, lr, 9), score, valid_loss=loss)

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
