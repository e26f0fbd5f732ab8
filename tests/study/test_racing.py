import json
from pathlib import Path

import numpy as np
import pytest
from tiny_study import fake_trial, make_settings

from normwise.records import Cell
from normwise.study.plan import due, total_cells, tune_cells
from normwise.study.racing import ENOUGH, EQUAL, behind_leader, race
from normwise.study.verdict import judge


def final(method, seed, score):
    return fake_trial(Cell("final", method, 2, 0.1, seed), score)


def run_to_the_end(settings, score, in_turn=None):
    """Train whatever is due, one cell or all at a time, until nothing is left."""
    trials = [fake_trial(cell, score(cell)) for cell in tune_cells(settings)]
    while True:
        done = {t.cell.key for t in trials}
        open_cells = [cell for cell in due(settings, trials) if cell.key not in done]
        if not open_cells:
            return trials
        chosen = open_cells if in_turn is None else [open_cells[in_turn.integers(len(open_cells))]]
        trials += [fake_trial(cell, score(cell)) for cell in chosen]


def noisy(levels, scatter, seed=0):
    """A score per method and seed: a level, a shift that the seed gives to every method, and a scatter of its own."""

    def score(cell):
        shift = np.random.default_rng([seed, cell.seed]).normal(0, 0.02)
        own = np.random.default_rng([seed, cell.seed, sorted(levels).index(cell.method)]).normal(0, scatter)
        return levels[cell.method] + shift + own

    return score


LEVELS = {"none": 0.80, "batch": 0.90, "layer": 0.895, "group": 0.86, "instance": 0.70}


def settings_of(levels=LEVELS, seeds=10, **changes):
    return make_settings(list(levels), seeds=range(seeds), race=True, tune_share=0.25, **changes)


def test_moderated_interval_by_hand():
    # After the columns' medians (0, .1, -.1) are off, the rows scatter by (0, 0, 0), (.2, -.2, 0) and (0, 0, 0):
    # variances 0, .06 and 0 with the factor 3/2 for the estimated medians, whose median is 0.
    scores = np.array([[0.9, 1.0, 0.8], [0.8, 0.5, 0.5], [0.7, 0.8, 0.6]])
    leader, second, third = behind_leader(scores)
    # t(0.975, 6) = 2.446912; the second's moderated variance is 2 · .06 / 6 = .02
    assert leader is None
    assert (second.low, second.high) == pytest.approx((0.3 - 0.1997895, 0.3 + 0.1997895), abs=1e-6)
    assert (third.low, third.high) == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_moderated_interval_covers_the_true_difference(n):
    rng = np.random.default_rng(n)
    missed = []
    for _ in range(1000):
        # The first is far ahead, so that which one leads is not a matter of chance; each pair shifts all methods.
        scores = rng.normal(size=(7, n)) + rng.normal(size=(1, n)) * 5
        scores[0] += 1000
        missed += [not gap.low <= 1000 <= gap.high for gap in behind_leader(scores)[1:]]
    assert 0.02 < np.mean(missed) < 0.08


def test_clearly_worse_methods_stop_and_close_ones_run_on():
    settings = settings_of()
    trials = run_to_the_end(settings, noisy(LEVELS, 0.006))
    state = race(settings, trials, 2)
    assert set(state.stopped) == {"none", "group", "instance"}
    assert all(1 <= stop.runs <= 4 for stop in state.stopped.values())
    assert state.running == ["batch", "layer"]
    assert len(trials) == total_cells(settings, trials) < total_cells(settings)


def test_open_questions_get_every_seed_and_settled_ones_do_not():
    apart, same = {"none": 0.90, "batch": 0.895}, {"none": 0.90, "batch": 0.90}
    for levels, scatter, seeds in ((apart, 0.02, 10), (same, 0.001, ENOUGH)):
        settings = settings_of(levels)
        state = race(settings, run_to_the_end(settings, noisy(levels, scatter)), 2)
        assert [state.runs(m) for m in levels] == [seeds, seeds]


def test_same_verdict_as_the_full_grid():
    """Over many simulated studies the race advises as the grid does, from far fewer trials."""
    same, near, cost = [], [], []
    for seed in range(30):
        score = noisy(LEVELS, 0.006, seed)
        grid, raced = make_settings(list(LEVELS), seeds=range(10)), settings_of()
        full, short = run_to_the_end(grid, score), run_to_the_end(raced, score)
        (all_seeds,), (some,) = judge(grid, full)[1], judge(raced, short)[1]
        same.append(all_seeds.use == some.use)
        near.append(LEVELS[some.use] >= max(LEVELS.values()) - EQUAL * raced.tolerance)
        cost.append(sum(t.cell.stage == "final" for t in short) / sum(t.cell.stage == "final" for t in full))
    assert np.mean(same) > 0.8
    assert all(near)
    assert np.mean(cost) < 0.5


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
        assert {t.cell.key for t in other} == {t.cell.key for t in whole}
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
    tuned = [fake_trial(cell) for cell in tune_cells(settings)]
    assert race(settings, [*tuned, final("batch", 0, 0.9)], 2).rounds == 1
    assert race(settings, [*tuned, final("batch", 0, 0.9), final("none", 0, 0.89)], 2).rounds == 2


def test_page_tells_what_was_measured():
    root = Path(__file__).parents[2]
    record = json.loads((root / "results" / "racing.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "racing.md").read_text(encoding="utf-8")
    for row in record["rows"]:
        grid, raced = row["grid"], row["race"]
        line = (
            f"| {row['study']} | {len(row['methods'])} × {row['seeds']} | {grid['use']} | {raced['use']} | "
            f"{', '.join(grid['tied'])} | {row['steps_ratio']:.0%} | {100 * row['test_lost']:.1f} points |"
        )
        assert line in page, line
