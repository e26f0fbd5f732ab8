"""Verdicts where the truth is known."""

import numpy as np
import pytest

from normwise.claims.statistics import (
    ERROR,
    LOOKS,
    error_at,
    estimate,
    judge,
    judge_look,
    look_at,
    seeds_needed,
    together,
)
from normwise.errors import InputError
from normwise.outcomes import FAILS, HOLDS, IN_PART, UNDECIDED
from normwise.records import Interval


def verdicts(truth, repeats=120, seeds=5, **bounds):
    draws = np.random.default_rng(0)
    found = [judge(estimate(draws.normal(truth, 1.0, seeds)), **bounds) for _ in range(repeats)]
    return {verdict: found.count(verdict) / repeats for verdict in (HOLDS, FAILS, UNDECIDED)}


def test_what_is_clearly_so_is_said_to_be_so():
    shares = verdicts(5.0, at_least=1.0)
    assert shares[HOLDS] > 0.95
    assert shares[FAILS] == 0
    shares = verdicts(-3.0, at_least=1.0)
    assert shares[FAILS] > 0.95
    assert shares[HOLDS] == 0


@pytest.mark.parametrize("seeds", [3, 5])
def test_at_the_bound_chance_decides_no_more_often_than_the_level_allows(seeds):
    # Either side may be called wrongly in 2.5 % of the cases.
    shares = verdicts(1.0, repeats=300, seeds=seeds, at_least=1.0)
    assert shares[HOLDS] < 0.07
    assert shares[FAILS] < 0.07
    assert shares[UNDECIDED] > 0.86


def test_equivalence_needs_the_whole_interval_inside():
    tight = {"at_least": -4.0, "at_most": 4.0}
    assert verdicts(0.0, **tight)[HOLDS] > 0.9
    assert verdicts(9.0, **tight)[FAILS] > 0.9
    assert verdicts(0.0, at_least=-0.2, at_most=0.2)[UNDECIDED] > 0.95


def test_ratios_are_averaged_as_ratios():
    values = [0.25, 0.5, 1.0]
    found = estimate(values, ratio=True)
    assert found.value == pytest.approx(0.5)
    turned = estimate([1 / v for v in values], ratio=True)
    assert (turned.value, turned.low, turned.high) == pytest.approx((2.0, 1 / found.high, 1 / found.low))


def test_equal_values_have_an_interval_without_width():
    for ratio in (False, True):
        assert estimate([0.3] * 3, ratio) == Interval(0.3, 0.3, 0.3)
    assert judge(estimate([0.0, 0.0]), at_most=0.0) == HOLDS
    assert judge(estimate([0.0, 0.0]), at_least=0.01) == FAILS


@pytest.mark.parametrize("values", [[1.0], [], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_gives_no_interval_is_refused(values):
    with pytest.raises(InputError):
        estimate(values)


def test_ratios_must_be_positive_and_hypotheses_bounded():
    with pytest.raises(InputError, match="cannot be averaged as ratios"):
        estimate([1.0, 0.0], ratio=True)
    with pytest.raises(InputError, match="needs a bound"):
        judge(Interval(0.0, 0.0, 0.0))


def design(values, at_least):
    """Add seeds until they decide; give the verdict and how many it took."""
    for look in LOOKS:
        verdict = judge_look(values[:look], False, at_least, None)[1]
        if verdict != UNDECIDED:
            return verdict, look
    return UNDECIDED, LOOKS[-1]


def designs(truth, repeats, at_least=0.0):
    draws = np.random.default_rng(0)
    return [design(draws.normal(truth, 1.0, LOOKS[-1]), at_least) for _ in range(repeats)]


def test_the_shares_of_error_add_up_and_only_whole_looks_count():
    assert sum(error_at(look) for look in LOOKS) == pytest.approx(ERROR)
    assert [look_at(n) for n in (0, 3, 4, 7, 8, 19, 20, 25)] == [0, 0, 4, 4, 8, 12, 20, 20]
    assert error_at(3, (3,)) == pytest.approx(ERROR)


def test_the_whole_design_errs_at_the_bound_in_at_most_five_percent():
    found = designs(0.0, 2000)
    assert 0.02 < sum(verdict != UNDECIDED for verdict, _ in found) / len(found) < 0.05


def test_one_look_after_another_at_95_percent_would_err_far_more_often():
    draws, looks = np.random.default_rng(0), LOOKS
    wrong = 0
    for _ in range(500):
        values = draws.normal(0.0, 1.0, looks[-1])
        wrong += any(judge(estimate(values[:n]), at_least=0.0) != UNDECIDED for n in looks)
    assert wrong / 500 > 0.08


def test_power_grows_with_the_distance_and_fewer_seeds_do():
    shares, seeds = [], []
    for truth in (0.3, 0.7, 1.0, 2.0):
        found = designs(truth, 300)
        assert sum(verdict == FAILS for verdict, _ in found) <= 0.02 * len(found)
        shares.append(sum(verdict == HOLDS for verdict, _ in found) / len(found))
        seeds.append(np.mean([look for _, look in found]))
    assert shares == sorted(shares)
    assert shares[2] > 0.9
    assert seeds == sorted(seeds, reverse=True)


def test_equal_values_decide_once_there_are_enough_of_them():
    # By a sign test: 4 coins fall alike in one of eight cases, 8 in one of 128.
    assert judge_look([2.0] * 4, False, 1.0, None)[1] == UNDECIDED
    assert judge_look([2.0] * 8, False, 1.0, None)[1] == HOLDS
    assert judge_look([0.0] * 8, False, 1.0, None)[1] == FAILS
    assert judge_look([2.0] * 4, False, 1.0, None, exact=True)[1] == HOLDS


def test_the_seeds_that_are_needed_do_decide():
    pattern = np.tile([-1.0, 1.0], 200)
    needed = seeds_needed(1.0 + pattern[:8], False, 0.6, None)
    assert needed is not None
    assert 20 < needed < 60
    error = error_at(LOOKS[-1])
    assert judge(estimate(1.0 + pattern[:needed], error=error), at_least=0.6) == HOLDS
    assert judge(estimate(1.0 + pattern[: needed * 3 // 4], error=error), at_least=0.6) == UNDECIDED
    assert seeds_needed(pattern[:8], False, 0.0, None) is None


def test_a_claim_holds_in_part_once_a_part_holds_and_another_does_not():
    assert together([HOLDS, HOLDS]) == HOLDS
    assert together([HOLDS, UNDECIDED, FAILS]) == IN_PART
    assert together([FAILS, FAILS]) == FAILS
    assert together([HOLDS, UNDECIDED]) == together([FAILS, UNDECIDED]) == UNDECIDED
    assert together([]) == UNDECIDED
