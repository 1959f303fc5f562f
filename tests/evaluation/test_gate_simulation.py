"""Error rates of the verdict on simulated truth, in a short form with fixed seeds. Bounds leave room for three standard errors."""

import numpy as np
import pytest

from benchmarks.gate_simulation import (
    Challengers,
    Shape,
    calibrated,
    coverage,
    false_promotions,
    nights,
    skewed_mean,
    slice_alarms,
    win_rate_of_halves,
)
from posttrain.config import GateSection

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("icc", [0.3, 0.8])
@pytest.mark.parametrize("per_prompt", [2, 5, 20])
@pytest.mark.parametrize("n_pairs", [400, 2000])
def test_shared_prompts_raise_no_error_rate(n_pairs, per_prompt, icc):
    shape = Shape(n_pairs, per_prompt, icc)
    promoted, gains, shares = false_promotions(shape, 300)
    assert promoted <= 0.025 + 0.03
    if shape.clusters.n >= 80:
        assert min(gains, shares) >= 0.95 - 0.04


def test_intervals_of_small_samples_cover():
    assert coverage(skewed_mean, np.exp(0.5), 300) >= 0.93 - 0.03
    assert coverage(win_rate_of_halves, 0.55, 300) >= 0.93 - 0.03
    generator = np.random.default_rng(0)
    assert np.mean([calibrated(generator).value for _ in range(100)]) <= 0.02


def test_many_slices_raise_no_alarms():
    assert slice_alarms(100, 150) <= 0.05


def test_a_year_of_equal_challengers_promotes_rarely_and_better_ones_are_found():
    year = GateSection(planned_looks=365)
    assert nights(year, Challengers(), 150).promoted <= 0.05 + 0.05
    once, planned = (nights(gate, Challengers(-1, 1), 60) for gate in (GateSection(planned_looks=1), year))
    assert planned.gain >= 0.5 * once.gain
    assert abs(planned.corrected - planned.true) < abs(planned.quoted - planned.true)
