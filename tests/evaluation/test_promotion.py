"""The promotion gate, one test per setting."""

import pytest
from support.figures import figures_of, spread, table

from posttrain.config import GateSection
from posttrain.evaluation.figures import Finding
from posttrain.evaluation.gate.decision import decide


def finding(severity) -> Finding:
    return Finding(
        rule="overfit",
        severity=severity,
        stage="dpo",
        title="DPO is right at home only",
        evidence={},
        threshold="",
        advice="",
    )


def test_significant_gain_is_promoted():
    """30 of 200 pairs gained, none lost: 30 / 202 = 14.9 points, +- 1.972 x sqrt((32 / 202 - 0.149^2) / 202)."""
    promotion = decide(figures_of(table()), GateSection())
    assert promotion.promoted
    assert promotion.opponent == "sft"
    assert len(promotion.reasons) == 1
    assert "DPO ranks 15.0 points more test pairs correctly than SFT (+9.7 to +20.0" in promotion.reasons[0]


def test_lower_bound_of_the_gain_must_exceed_min_gain():
    """The gain is 15 points with an interval from 10 to 20: its lower bound exceeds 5 but not 14."""
    figures = figures_of(table())
    assert decide(figures, GateSection(min_gain=0.05)).promoted
    refused = decide(figures, GateSection(min_gain=0.14))
    assert not refused.promoted
    assert "the lower bound of the gain's interval does not exceed gate.min_gain (+14.0 points)" in refused.reasons[1]


def test_gain_with_a_high_p_value_is_refused():
    """4 of 200 pairs gained, none lost: McNemar's test gives p = 1/8, and the interval contains 0."""
    better = spread(0.6).copy()
    better[[60, 160, 61, 161]] = 1
    figures = figures_of(table(dpo_margins=better))
    assert figures.comparisons["dpo_vs_sft"].gain.low < 0
    promotion = decide(figures, GateSection())
    assert not promotion.promoted
    assert "p = 0.12 is above 0.0082, the level of each of 20 looks" in promotion.reasons[1]
    once = decide(figures, GateSection(planned_looks=1)).reasons[1]
    assert once == "the gain is not statistically significant: p = 0.12 is above 0.05; gate.max_p_value is 0.05"
    assert decide(figures, GateSection(max_p_value=0.2, planned_looks=1)).promoted


def test_a_loss_is_refused():
    assert not decide(figures_of(table(dpo_margins=spread(0.5))), GateSection()).promoted


def test_model_must_beat_the_champion():
    """DPO gains 15 points over SFT, but the champion ranks exactly as many pairs correctly."""
    level = decide(figures_of(table(champion_margins=spread(0.75))), GateSection())
    assert not level.promoted
    assert level.opponent == "champion"
    assert "DPO ranks 0.0 points more test pairs correctly than the champion" in level.reasons[0]
    assert decide(figures_of(table(champion_margins=spread(0.6))), GateSection()).promoted


def test_worse_slice_is_refused_despite_an_overall_gain():
    """DPO ranks a quarter of the pairs wrongly that SFT ranks correctly, and all others correctly."""
    figures = figures_of(table(source="by_sft"))
    assert figures.comparisons["dpo_vs_sft"].gain.low > 0
    promotion = decide(figures, GateSection())
    assert not promotion.promoted
    assert "accuracy on source good fell: -100.0 points" in promotion.reasons[1]
    assert decide(figures, GateSection(max_slice_loss=1.0)).promoted
    assert decide(figures, GateSection(min_slice_pairs=51)).promoted  # the slice has 50


@pytest.mark.parametrize(
    ("severity", "block", "promoted"),
    [
        ("warning", "error", True),
        ("error", "error", False),
        ("error", "warning", False),
        ("warning", "warning", False),
        ("note", "warning", True),
        ("error", "never", True),
    ],
)
def test_findings_block_promotion_by_severity(severity, block, promoted):
    promotion = decide(figures_of(table(), (finding(severity),)), GateSection(block_severity=block))
    assert promotion.promoted == promoted
    if not promoted:
        assert f"{severity} overfit: DPO is right at home only" in promotion.reasons[1]


def test_all_reasons_against_promotion_are_given():
    figures = figures_of(table(dpo_margins=spread(0.5)), (finding("error"),))
    comparison, gain, per_token, blocking = decide(figures, GateSection()).reasons
    assert comparison.startswith("DPO ranks 10.0 points fewer test pairs correctly")
    assert "gate.min_gain" in gain
    assert "accuracy per token, on which length has no effect, fell" in per_token
    assert "error overfit" in blocking
