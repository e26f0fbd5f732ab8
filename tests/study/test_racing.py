import numpy as np
import pytest
from races import compete, noisy, run_to_the_end
from tiny_study import fake_trial, make_settings

from normwise.records import Setup
from normwise.study.plan import total_setups, tune_setups
from normwise.study.racing import ENOUGH, race
from normwise.study.verdict import judge


def final(method, seed, score):
    return fake_trial(Setup("final", method, 2, 0.1, seed), score)


LEVELS = {"none": 0.80, "batch": 0.90, "layer": 0.895, "group": 0.86, "instance": 0.70}


def settings_of(levels=LEVELS, seeds=10, **changes):
    return make_settings(list(levels), seeds=range(seeds), race=True, tune_share=0.25, **changes)


def test_clearly_worse_methods_stop_and_close_ones_run_on():
    settings = settings_of()
    trials = run_to_the_end(settings, noisy(LEVELS, 0.006))
    state = race(settings, trials, 2)
    assert set(state.stopped) == {"none", "group", "instance"}
    assert all(1 <= stop.runs <= 4 for stop in state.stopped.values())
    assert state.running == ["batch", "layer"]
    assert len(trials) == total_setups(settings, trials) < total_setups(settings)


@pytest.mark.parametrize(
    ("other", "scatter", "costs", "is_open"),
    [
        (0.90, 0.02, None, True),  # a question that seeds can answer
        (0.90, 0.001, None, False),  # as good as each other: not worth asking
        (0.896, 0.001, None, False),  # answered
        (0.898, 0.004, {"none": 0.01, "batch": 0.02}, False),  # close enough for the cheaper one
    ],
)
def test_a_race_ends_when_more_seeds_would_hardly_change_the_advice(other, scatter, costs, is_open):
    levels = {"none": 0.90, "batch": other}
    settings = settings_of(levels)
    trials = run_to_the_end(settings, noisy(levels, scatter, 6, costs))
    seeds = race(settings, trials, 2).runs("none")
    assert seeds > ENOUGH if is_open else seeds == ENOUGH
    _, (verdict,) = judge(settings, trials)
    assert (seeds < 10) == any(f"The race ended after {seeds} of 10 seeds" in sentence for sentence in verdict.why)


def test_races_advise_as_the_full_grid_does():
    """Over studies with random levels: more often than a second grid on other seeds, at a cost that is stated."""
    clear, close = ([compete(spread, 0.01, seed) for seed in range(30)] for spread in (0.03, 0.01))
    for outcomes, same, cost in ((clear, 0.9, 1 / 3), (close, 0.8, 1 / 2)):
        assert np.mean([o.same for o in outcomes]) >= same
        assert np.mean([o.same for o in outcomes]) > np.mean([o.another_grid_same for o in outcomes])
        assert np.mean([o.cost for o in outcomes]) < cost
        # True levels: where the advice differs it costs nothing that would matter.
        assert abs(np.mean([o.lost for o in outcomes])) < 0.002
        assert np.mean([o.stopped_the_best for o in outcomes]) < 0.05


def test_equal_methods_are_stopped_hardly_more_often_than_the_grid_calls_one_worse():
    levels, grid, raced = dict.fromkeys(LEVELS, 0.9), make_settings(list(LEVELS), seeds=range(5)), settings_of(seeds=5)
    worse, stopped = [], []
    for seed in range(60):
        score = noisy(levels, 0.01, seed)
        worse += [not s.tied for s in judge(grid, run_to_the_end(grid, score))[0]]
        stopped.append(len(race(raced, run_to_the_end(raced, score), 2).stopped) / len(levels))
    assert np.mean(stopped) < np.mean(worse) + 0.06 < 0.2


def test_outcome_does_not_depend_on_who_finishes_first():
    settings, score = settings_of(), noisy(LEVELS, 0.006)
    whole = run_to_the_end(settings, score)
    for seed in range(3):
        other = run_to_the_end(settings, score, in_turn=np.random.default_rng(seed))
        assert {t.setup.key for t in other} == {t.setup.key for t in whole}
        assert judge(settings, other) == judge(settings, whole)


def test_the_one_that_is_left_runs_enough_seeds():
    levels = {"none": 0.5, "batch": 0.9}
    settings = settings_of(levels, seeds=12)
    state = race(settings, run_to_the_end(settings, noisy(levels, 0.001)), 2)
    assert state.running == ["batch"]
    assert state.runs("batch") == ENOUGH
    assert state.runs("none") == 1


def test_standings_say_who_stopped():
    settings = settings_of()
    standings, (verdict,) = judge(settings, run_to_the_end(settings, noisy(LEVELS, 0.006)))
    assert len(standings) == len(LEVELS)
    stopped = {s.method: s for s in standings if s.stopped}
    assert set(stopped) == {"none", "group", "instance"}
    assert all(not s.tied and s.behind.low > 0 and s.runs < 10 for s in stopped.values())
    assert any("seeds, so stopped: " in sentence for sentence in verdict.why)


def test_without_race_every_method_runs_every_seed():
    settings = make_settings(["none", "batch"], seeds=range(4))
    trials = [final(m, s, {"none": 0.1, "batch": 0.9}[m]) for m in settings.methods for s in settings.seeds]
    assert race(settings, trials, 2).stopped == {}
    assert race(settings, trials, 2).runs("none") == 4


def test_a_race_waits_for_its_round():
    settings = settings_of({"none": 0.5, "batch": 0.9}, seeds=5)
    tuned = [fake_trial(setup) for setup in tune_setups(settings)]
    assert race(settings, [*tuned, final("batch", 0, 0.9)], 2).rounds == 1
    assert race(settings, [*tuned, final("batch", 0, 0.9), final("none", 0, 0.89)], 2).rounds == 2
