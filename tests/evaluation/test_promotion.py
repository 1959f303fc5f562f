"""The gate, setting by setting."""

import pytest
from support.figures import figures_of, spread, table

from posttrain.config import GateSection
from posttrain.evaluation.figures import Finding
from posttrain.evaluation.gate import decide


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


def test_a_clear_gain_is_promoted():
    promotion = decide(figures_of(table()), GateSection())
    assert promotion.promoted
    assert promotion.opponent == "sft"
    assert len(promotion.reasons) == 1
    assert "DPO orders +15.0 points more test pairs right than SFT (+10." in promotion.reasons[0]


def test_a_gain_must_be_sure_not_only_seen():
    """+15 points, between 10 and 20: surely more than 5, perhaps more than 14."""
    figures = figures_of(table())
    assert decide(figures, GateSection(min_gain=0.05)).promoted
    refused = decide(figures, GateSection(min_gain=0.14))
    assert not refused.promoted
    assert "gate.min_gain asks for surely more than +14.0 points" in refused.reasons[1]


def test_chance_is_refused():
    """Four pairs gained of 200, none lost: the bootstrap is sure that it is more than 0, McNemar is not (p = 1/8)."""
    better = spread(0.6).copy()
    better[[60, 160, 61, 161]] = 1
    figures = figures_of(table(dpo_margins=better))
    assert figures.comparisons["dpo_vs_sft"].gain.low > 0
    promotion = decide(figures, GateSection())
    assert not promotion.promoted
    assert "gate.max_p_value asks for p <= 0.05" in promotion.reasons[1]
    assert decide(figures, GateSection(max_p_value=0.2)).promoted


def test_a_loss_is_refused():
    assert not decide(figures_of(table(dpo_margins=spread(0.5))), GateSection()).promoted


def test_the_champion_must_be_beaten_not_only_sft():
    """DPO gains 15 points on SFT, but the champion orders exactly as many pairs right."""
    level = decide(figures_of(table(champion_margins=spread(0.75))), GateSection())
    assert not level.promoted
    assert level.opponent == "champion"
    assert "DPO orders +0.0 points more test pairs right than the champion" in level.reasons[0]
    assert decide(figures_of(table(champion_margins=spread(0.6))), GateSection()).promoted


def test_a_slice_that_got_worse_is_refused_though_the_whole_is_better():
    """DPO turns round a quarter of the pairs that SFT had right, and gets all others right."""
    figures = figures_of(table(source="by_sft"))
    assert figures.comparisons["dpo_vs_sft"].gain.low > 0
    promotion = decide(figures, GateSection())
    assert not promotion.promoted
    assert "source good got worse: -100.0 points" in promotion.reasons[1]
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
def test_findings_may_block(severity, block, promoted):
    promotion = decide(figures_of(table(), (finding(severity),)), GateSection(block_severity=block))
    assert promotion.promoted == promoted
    if not promoted:
        assert f"{severity} overfit: DPO is right at home only" in promotion.reasons[1]


def test_every_objection_is_told():
    figures = figures_of(table(dpo_margins=spread(0.5)), (finding("error"),))
    assert len(decide(figures, GateSection()).reasons) == 3
