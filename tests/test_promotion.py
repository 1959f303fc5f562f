"""The gate, setting by setting."""

import numpy as np
import pyarrow as pa
import pytest

from posttrain.config import EvaluationSection, GateSection
from posttrain.evaluation.figures import Figures, Finding
from posttrain.evaluation.gate import decide
from posttrain.evaluation.statistics import summarise

N = 200
SECTION = EvaluationSection(n_bootstrap=500)


def spread(accuracy: float) -> np.ndarray:
    """Margins of 1 and -1, of which a share is above 0: the same pairs first whatever the share, so all differ alike."""
    return np.where(np.arange(N) % 100 < 100 * accuracy, 1.0, -1.0)


def table(
    base_margins=None,
    sft_margins=None,
    dpo_margins=None,
    champion_margins=None,
    implicit=None,
    longer=None,
    source=None,
    dpo_chosen=-10.0,
    kl=0.05,
) -> pa.Table:
    """Rows of 200 pairs: SFT is right on 60 %, DPO on 75 %, lengths mean nothing; but for what is given."""
    sft = spread(0.6) if sft_margins is None else sft_margins
    dpo = spread(0.75) if dpo_margins is None else dpo_margins
    little = 0.1 * np.where(np.arange(N) % 10 < 7, 1.0, -1.0)  # or the implicit margin would be 0 on most pairs
    dpo = dpo + little if implicit is None else sft + implicit
    base = spread(0.5) if base_margins is None else base_margins
    by_length = np.where(np.arange(N) // 2 % 2 == 0, 2, -2) if longer is None else longer
    sources = np.array(["s"] * N)
    if source == "by_sft":  # a slice on which SFT is always right and DPO never, and one the other way round
        sources = np.where(np.arange(N) % 4 == 0, "good", "bad")
        sft, dpo = np.where(sources == "good", 1.0, -1.0), np.where(sources == "good", -1.0, 1.0)
    stages = {"base": base, "sft": sft, "dpo": dpo}
    if champion_margins is not None:
        stages["champion"] = champion_margins
    chosen = {"dpo": dpo_chosen}
    logps = {
        f"{stage}_{which}_logps": pa.array(chosen.get(stage, -10.0) - (which == "rejected") * margin)
        for stage, margin in stages.items()
        for which in ("chosen", "rejected")
    }
    return pa.table(
        {
            "id": [str(i) for i in range(N)],
            "source": sources,
            "true_margin": pa.nulls(N, pa.float64()),
            **{name: ["text"] * N for name in ("prompt", "chosen", "rejected")},
            "n_turns": pa.array([1] * N),
            "n_prompt_tokens": pa.array([10] * N),
            "n_chosen_tokens": pa.array([12] * N),
            "n_rejected_tokens": pa.array(12 - by_length.astype(int)),
            "kl_nats_per_token": pa.array([kl] * N),
            **logps,
        }
    )


def figures_of(rows: pa.Table, findings: tuple[Finding, ...] = ()) -> Figures:
    """The figures of rows."""
    found = summarise(rows, SECTION, {}, beta=0.1)
    return Figures(**dict(found), findings=list(findings), confidence=0.95, seed=0, digests={})


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
