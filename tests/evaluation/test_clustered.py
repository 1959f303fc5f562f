"""Intervals and tests that take the prompt as the unit, compared with values worked by hand."""

import numpy as np
import pytest

from posttrain.config import EvaluationSection
from posttrain.evaluation.answers.judge import win_rate
from posttrain.evaluation.clustered.gains import holm, paired_gain, sign_flip_p_value
from posttrain.evaluation.clusters import Clusters, conversation_key
from posttrain.evaluation.intervals import bootstrap_mean, bootstrap_ratio, cluster_share, wilson

SECTION = EvaluationSection()


def gain_of(differences: list[float], prompts: list[int] | None = None):
    values = np.array(differences)
    return paired_gain(values, Clusters.of(prompts) if prompts else Clusters.single(len(values)), 0.95)


def test_clusters_are_numbered_by_first_appearance():
    clusters = Clusters.of(["b", "a", "b"])
    assert (clusters.n, clusters.index.tolist(), clusters.sizes.tolist()) == (2, [0, 1, 0], [2, 1])
    assert clusters.sums(np.array([1.0, 2.0, 4.0])).tolist() == [5, 2]
    assert clusters.where(np.array([True, False, True])).n == 1


def test_design_effect_by_hand():
    """Two prompts of two equal pairs: mean 1/2, residuals of the sums 1 and -1, so 2 / 1 x 2 / 16 = 1/4 against
    1/4 / 4 = 1/16 of independent pairs: 4, but no more than the two pairs of a prompt."""
    clusters = Clusters.of([0, 0, 1, 1])
    assert clusters.mean_variance(np.array([1.0, 1, 0, 0])) == 0.25
    assert clusters.design_effect(np.array([1.0, 1, 0, 0])) == 2
    assert clusters.design_effect(np.array([1.0, 0, 1, 0])) == 1  # no variance between prompts
    assert clusters.design_effect(np.ones(4)) == 2  # nothing is known
    assert Clusters.single(4).design_effect(np.array([1.0, 1, 0, 0])) == 1


def test_prompts_of_one_conversation_have_one_key():
    system, first = {"role": "system", "content": "s"}, {"role": "user", "content": "a"}
    later = [system, first, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert conversation_key([system, first]) == conversation_key(later)
    assert conversation_key([first]) != conversation_key([system, first])
    assert conversation_key([{"role": "assistant", "content": "no user"}])


def test_share_of_equal_pairs_counts_prompts():
    """Four prompts of five equal pairs tell as much as four pairs: Wilson's interval with Student's quantile, 3.182."""
    halves, clusters = np.repeat([1.0, 1.0, 1.0, 0.0], 5), Clusters.of(np.repeat(np.arange(4), 5).tolist())
    found = cluster_share(halves, clusters, 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.1627, 0.9789), abs=1e-4)
    assert cluster_share(halves, Clusters.single(20), 0.95) == wilson(15, 20, 0.95)


def test_gain_by_hand():
    """6 of 10 gained, 1 lost: centre 5 / 12, variance (9 / 12 - (5 / 12)^2) / 12 = 0.04803, Student's quantile 2.262."""
    found = gain_of([1] * 6 + [-1] + [0] * 3)
    assert (found.value, found.centre) == pytest.approx((0.5, 5 / 12))
    assert found.std_error == pytest.approx(0.04803**0.5, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((0.41667 - 0.49574, 0.41667 + 0.49574), abs=1e-3)
    assert found.p_value == pytest.approx(2 * 8 / 2**7)  # McNemar's: 2 (C(7,0) + C(7,1)) / 2^7


def test_equal_models_have_an_interval_with_a_width():
    """No pair of 98 differs: one more may be gained and one lost: +- 1.985 x sqrt(2 / 100^2)."""
    found = gain_of([0.0] * 98)
    assert (found.value, found.p_value) == (0, 1)
    assert (found.low, found.high) == pytest.approx((-0.02807, 0.02807), abs=1e-4)


def test_pairs_of_one_prompt_count_once():
    """Ten equal pairs each of 6 prompts, five gained: as sure as 6 pairs, not as 60."""
    differences, prompts = np.repeat([1.0, 1, 1, 1, 1, 0], 10), np.repeat(np.arange(6), 10).tolist()
    found, alone = gain_of(differences.tolist(), prompts), gain_of([1, 1, 1, 1, 1, 0])
    assert (found.n_pairs, found.n_prompts, found.design_effect) == (60, 6, 10)
    assert found.p_value == alone.p_value == 2 / 2**5
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_sign_flips_by_hand():
    """Sums 2, 1, 1: of the 8 totals 4, 2, 2, 0, 0, -2, -2, -4 two are as far from 0 as 4, and six as far as 2."""
    assert sign_flip_p_value(np.array([2.0, 1, 1])) == pytest.approx(2 / 8)
    assert sign_flip_p_value(np.array([2.0, 1, -1, 0])) == pytest.approx(6 / 8)
    assert sign_flip_p_value(np.array([0.5, 0.5, 1.0])) == pytest.approx(2 / 8)
    assert sign_flip_p_value(np.array([1.0, -1])) == 1
    assert sign_flip_p_value(np.array([])) == 1


def test_sign_flips_of_many_sums_are_close_to_the_normal_distribution(monkeypatch):
    sums = np.random.default_rng(0).integers(-3, 4, 300).astype(float)
    exact = sign_flip_p_value(sums)
    monkeypatch.setattr("posttrain.evaluation.clustered.gains.LARGEST_EXACT", 0)
    assert sign_flip_p_value(sums) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("n_prompts", [2, 5, 12, 60])
def test_interval_and_p_value_never_contradict(n_prompts):
    generator = np.random.default_rng(n_prompts)
    for _ in range(200):
        prompts = generator.integers(0, n_prompts, 2 * n_prompts).tolist()
        found = gain_of(
            generator.choice([-1, -0.5, 0, 0.5, 1], 2 * n_prompts, p=[0.1, 0.1, 0.3, 0.1, 0.4]).tolist(), prompts
        )
        for confidence in (0.8, 0.95, 0.999):
            low, high = found.bounds(confidence)
            assert low <= found.value <= high
            assert (low > 0 or high < 0) == (found.p_value <= 1 - confidence)


def test_one_pair_says_nothing():
    found = gain_of([1.0])
    assert (found.value, found.low, found.high, found.p_value) == (1, -1, 1, 1)
    mean = bootstrap_mean(np.array([3.0]), SECTION)
    assert (mean.value, mean.low, mean.high) == (3, -np.inf, np.inf)
    assert type(mean).model_validate_json(mean.model_dump_json()) == mean


def test_win_rate_by_hand():
    """One half of a gain of (3 - 1) / 8, ties included: centre 2 / 10 and variance (6 / 10 - 0.04) / 10 of wins less losses,
    Student's quantile 2.365."""
    found = win_rate([1, 1, 1, 0, 0.5, 0.5, 0.5, 0.5], 0.95)
    assert (found.n_wins, found.n_ties, found.n_losses, found.n_prompts) == (3, 4, 1, 8)
    assert found.share.value == 0.625
    assert (found.share.low, found.share.high) == pytest.approx((0.6 - 0.2798, 0.6 + 0.2798), abs=1e-3)
    assert found.p_value == 2 * (1 + 4) / 2**4
    alike = win_rate([0.5] * 98, 0.95).share
    assert (alike.low, alike.high) == pytest.approx((0.5 - 0.01404, 0.5 + 0.01404), abs=1e-4)


def test_bootstrap_resamples_prompts():
    """Twenty equal rows of each of 30 prompts give the interval of 30 rows."""
    values = np.random.default_rng(0).normal(0, 1, 30)
    alone = bootstrap_mean(values, SECTION)
    found = bootstrap_mean(np.repeat(values, 20), SECTION, Clusters.of(np.repeat(np.arange(30), 20).tolist()))
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_bootstrap_of_mostly_equal_values_is_bounded():
    """Many resamples hold only zeros; their error is taken as a fifth of the sample's, not as 0."""
    values = np.zeros(64)
    values[0] = 1
    found = bootstrap_ratio(values, np.ones(64), SECTION)
    assert found.low < 1 / 64 < found.high < 6 / 64 + 1e-9


def test_holm_by_hand():
    """0.01 x 3 and 0.02 x 2, then 0.5 x 1, which stays."""
    assert holm([0.5, 0.01, 0.02]) == pytest.approx([0.5, 0.03, 0.04])
    assert holm([0.02, 0.019]) == pytest.approx([0.038, 0.038])
    assert holm([]) == []
