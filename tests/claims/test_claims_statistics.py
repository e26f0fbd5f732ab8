"""Verdicts where the truth is known."""

import numpy as np
import pytest

from normwise.claims.statistics import estimate, judge, together
from normwise.errors import InputError
from normwise.outcomes import FAILS, HOLDS, UNDECIDED
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
    # Either side may be called wrongly in 2.5 % of the cases; the bootstrap at n = 3 comes within a few percent.
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


def test_a_claim_holds_only_if_all_of_it_does():
    assert together([HOLDS, HOLDS]) == HOLDS
    assert together([HOLDS, UNDECIDED, FAILS]) == FAILS
    assert together([HOLDS, UNDECIDED]) == UNDECIDED
    assert together([]) == UNDECIDED
