"""Conditions of the gate about ranking, slices and findings. Each yields the reasons against promotion."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config import GateSection
from posttrain.evaluation.figures import SEVERITIES, Comparison, Figures
from posttrain.evaluation.gate.answer_conditions import FINDINGS as ANSWER_FINDINGS
from posttrain.evaluation.labels import point_range, sample_size


def ranking_conditions(comparison: Comparison, gate: GateSection) -> Iterator[str]:
    """Yield why the gain in ranking accuracy is not enough."""
    gain, level = comparison.gain, gate.max_p_value
    if gain.p_value > level:
        yield f"the gain is not statistically significant: p = {gain.p_value:.2g} is above gate.max_p_value {level:g}"
    elif not gain.bounds(1 - level)[0] > gate.min_gain:
        yield f"the lower bound of the gain's interval does not exceed gate.min_gain ({100 * gate.min_gain:+.1f} points)"


def slice_conditions(figures: Figures, comparison: str, gate: GateSection) -> Iterator[str]:
    """Yield the slices that got worse."""
    for part in figures.worse_slices(comparison, gate.max_slice_loss, gate.min_slice_pairs):
        gain = part.gains[comparison]
        yield (
            f"accuracy on {part.by} {part.name} fell: {100 * gain.value:+.1f} points ({point_range(gain)}, "
            f"{sample_size(part)}); gate.max_slice_loss allows a loss of {100 * gate.max_slice_loss:.1f} points"
        )


def finding_conditions(figures: Figures, gate: GateSection) -> Iterator[str]:
    """Yield the findings that block, without those about answers, which have conditions and settings of their own."""
    if gate.block_severity == "never":
        return
    least = SEVERITIES.index(gate.block_severity)
    for finding in figures.findings:
        if SEVERITIES.index(finding.severity) >= least and finding.rule not in ANSWER_FINDINGS:
            yield f"{finding.severity} {finding.rule}: {finding.title} (gate.block_severity: {gate.block_severity})"
