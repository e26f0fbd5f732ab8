import numpy as np
import pytest

from normwise.study.pairs import behind_leader


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
