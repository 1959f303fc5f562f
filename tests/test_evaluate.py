"""Every published figure against one worked by hand."""

import numpy as np
import pyarrow as pa
import pytest

from posttrain.config import EvaluationSection, GateSection
from posttrain.evaluate import bootstrap_mean, compare, correct, summarise, wilson
from posttrain.promotion import decide

SECTION = EvaluationSection()


def test_wilson_by_hand():
    """8 of 10 at 95 %: (0.8 + 0.19207 +- 1.96 sqrt(0.016 + 0.0096)) / 1.38415, as in textbooks: 0.490 to 0.943."""
    estimate = wilson(8, 10, 0.95)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)


def test_wilson_at_the_ends_stays_a_share():
    assert wilson(0, 10, 0.95).low == 0
    assert wilson(10, 10, 0.95).high == pytest.approx(1)
    assert wilson(10, 10, 0.95).low == pytest.approx(0.7224672)


def test_a_tie_counts_one_half():
    assert correct(np.array([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]


def test_mcnemar_by_hand():
    """9 pairs gained, 1 lost: 2 (C(10,0) + C(10,1)) / 2^10 = 22 / 1024."""
    newer = np.array([1.0] * 9 + [0.0] + [1.0] * 5)
    older = np.array([0.0] * 9 + [1.0] + [1.0] * 5)
    comparison = compare(newer, older, SECTION)
    assert (comparison.n_gained, comparison.n_lost) == (9, 1)
    assert comparison.p_value == pytest.approx(22 / 1024)
    assert comparison.gain.value == pytest.approx(8 / 15)
    assert comparison.gain.low < 8 / 15 < comparison.gain.high


def test_equal_models_differ_by_nothing():
    same = np.array([1.0, 0.0, 1.0])
    assert compare(same, same, SECTION).p_value == 1.0


def test_the_bootstrap_is_the_same_for_the_same_seed_and_near_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    first, second = bootstrap_mean(values, SECTION), bootstrap_mean(values, SECTION)
    assert first == second
    half = 1.96 * values.std() / 20
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


@pytest.fixture
def pairs():
    """Four pairs. Summed: SFT is right on 1 and ties on 2; DPO is right on 1, 2 and 3. Pair 3's responses have 2 and 4
    tokens: DPO's means are -3 and -2, so per token it is wrong there. The hidden reward disagrees with the label of
    pair 4."""
    f32 = pa.float32()
    return pa.table(
        {
            "id": ["1", "2", "3", "4"],
            "source": ["s"] * 4,
            "true_margin": pa.array([1.0, 2.0, 0.5, -1.0], pa.float64()),
            "n_chosen_tokens": pa.array([2, 2, 2, 2], pa.int32()),
            "n_rejected_tokens": pa.array([2, 2, 4, 2], pa.int32()),
            "base_chosen_logps": pa.array([-4.0, -4.0, -9.0, -4.0], f32),
            "base_rejected_logps": pa.array([-5.0, -3.0, -8.0, -3.0], f32),
            "sft_chosen_logps": pa.array([-4.0, -4.0, -9.0, -4.0], f32),
            "sft_rejected_logps": pa.array([-5.0, -4.0, -8.0, -3.0], f32),
            "dpo_chosen_logps": pa.array([-4.0, -4.0, -6.0, -5.0], f32),
            "dpo_rejected_logps": pa.array([-6.0, -5.0, -8.0, -4.0], f32),
        }
    )


def test_figures_by_hand(pairs):
    figures = summarise(pairs, SECTION, {}, {})
    base, sft, dpo = (figures.stages[stage] for stage in ("base", "sft", "dpo"))
    assert base.likelihood_accuracy.value == 1 / 4
    assert sft.likelihood_accuracy.value == 1.5 / 4
    assert dpo.likelihood_accuracy.value == 3 / 4
    assert dpo.normalised_accuracy.value == 2 / 4
    # DPO's margin less SFT's: 2-1, 1-0, 2-(-1), -1-(-1) = 0, a tie
    assert dpo.implicit_accuracy.value == 3.5 / 4
    assert (base.implicit_accuracy, sft.implicit_accuracy) == (None, None)
    assert dpo.true_agreement.value == 1.0  # also on pair 4, where the label is wrong
    assert sft.true_agreement.value == (1 + 0.5 + 0 + 1) / 4
    assert dpo.implicit_margin_nats.value == pytest.approx((1 + 1 + 3 + 0) / 4)
    comparison = figures.comparisons["dpo_vs_sft"]
    assert (comparison.n_gained, comparison.n_lost) == (2, 0)
    assert comparison.gain.value == pytest.approx(1.5 / 4)


def test_without_a_hidden_reward_there_is_no_agreement(pairs):
    index = pairs.column_names.index("true_margin")
    figures = summarise(pairs.set_column(index, "true_margin", pa.nulls(4, pa.float64())), SECTION, {}, {})
    assert figures.stages["dpo"].true_agreement is None


def test_without_dpo_sft_is_held_against_the_base(pairs):
    figures = summarise(pairs.drop_columns(["dpo_chosen_logps", "dpo_rejected_logps"]), SECTION, {}, {})
    assert figures.stages["dpo"] is None
    assert list(figures.comparisons) == ["sft_vs_base"]


def _figures(pairs, n_gained, n_lost):
    comparison = compare(
        np.array([1.0] * n_gained + [0.0] * n_lost + [1.0] * 50),
        np.array([0.0] * n_gained + [1.0] * n_lost + [1.0] * 50),
        SECTION,
    )
    figures = summarise(pairs, SECTION, {}, {})
    return figures.model_copy(update={"comparisons": {"dpo_vs_sft": comparison}})


def test_a_clear_gain_is_promoted(pairs):
    promotion = decide(_figures(pairs, 30, 5), GateSection())
    assert promotion.promoted
    assert len(promotion.reasons) == 1
    assert "DPO orders +29.4 points more test pairs right than SFT" in promotion.reasons[0]


def test_chance_a_loss_and_too_small_a_gain_are_refused_with_the_setting_that_did_it(pairs):
    assert "gate.max_p_value" in decide(_figures(pairs, 6, 4), GateSection()).reasons[1]
    lost = decide(_figures(pairs, 5, 30), GateSection())
    assert not lost.promoted
    assert "gate.min_gain" in lost.reasons[1]
    small = decide(_figures(pairs, 30, 5), GateSection(min_gain=0.5))
    assert not small.promoted
    assert "+50.0 points" in small.reasons[1]
