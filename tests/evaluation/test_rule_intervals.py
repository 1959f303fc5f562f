"""Intervals that the diagnosis decides with, against values worked by hand or published."""

import numpy as np
import pytest

from posttrain.evaluation.diagnosis.rule_intervals import Sample, difference, dispersion, rate, ratio
from posttrain.evaluation.intervals import Estimate, wilson


def ends(estimate):
    return pytest.approx((estimate.value, estimate.low, estimate.high), abs=5e-4)


def test_mean_has_students_interval():
    """1, 2, 3: standard error sqrt(1/3) = 0.5774, t with 2 degrees of freedom 4.3027."""
    assert ends(Sample(np.array([1.0, 2.0, 3.0]), 0.95).mean) == (2, 2 - 2.4843, 2 + 2.4843)


def test_difference_of_means_has_welchs_interval():
    """Variances 1 and 4 of 3 values each: error sqrt(5/3) = 1.2910, (5/3)^2 / ((1/9 + 16/9) / 2) = 2.9412 degrees of freedom."""
    first, second = Sample(np.array([5.0, 6.0, 7.0]), 0.95), Sample(np.array([1.0, 3.0, 5.0]), 0.95)
    found = first.above(second)
    assert found.value == 3
    assert (found.high - 3) / 1.2910 == pytest.approx(3.2189, abs=2e-3)
    assert found.low == pytest.approx(6 - found.high)


def test_constant_values_have_an_interval_without_width():
    assert ends(Sample(np.full(5, 2.0), 0.95).above(1.5)) == (0.5, 0.5, 0.5)


def test_difference_of_shares_is_newcombes():
    """Newcombe 1998, example (a): 56 of 70 against 48 of 80."""
    assert ends(difference(wilson(56, 70, 0.95), wilson(48, 80, 0.95))) == (0.2, 0.0524, 0.3339)


def test_ratio_is_the_difference_of_logarithms():
    """Both intervals are a factor of e wide, so that of the ratio is exp(sqrt 2) = 4.113 wide on either side."""
    e = float(np.e)
    wide = Estimate(value=6.0, low=6 / e, high=6 * e), Estimate(value=2.0, low=2 / e, high=2 * e)
    found = ratio(*wide)
    assert found is not None
    assert ends(found) == (3, 3 / 4.1133, 3 * 4.1133)
    assert ratio(Estimate(value=1.0, low=0.0, high=2.0), wide[0]) is None


@pytest.mark.parametrize(
    ("n_events", "n", "low", "high"), [(0, 10, 0, 0.3085), (10, 10, 0.6915, 1), (3, 40, 0.0157, 0.2039)]
)
def test_rate_has_the_exact_interval(n_events, n, low, high):
    assert ends(rate(n_events, n, 0.95)) == (n_events / n, low, high)


def test_dispersion_is_the_variance_over_that_of_drawing_rows():
    """Squares 8 x 0.25 over p (1 - p) = 0.25 for one row each: 8 / 6; chi-squared with 6 degrees: 1.2373 and 14.4494."""
    found = dispersion(Sample(np.array([0.0, 1, 1, 0, 0, 1, 1, 0]), 0.95), 1)
    assert found is not None
    assert ends(found) == (8 / 6, 8 / 14.4494, 8 / 1.2373)


def test_dispersion_ignores_a_trend():
    found = dispersion(Sample(np.linspace(0.4, 0.9, 20), 0.95), 16)
    assert found is not None
    assert found.high < 1e-12
    assert dispersion(Sample(np.ones(10), 0.95), 16) is None
