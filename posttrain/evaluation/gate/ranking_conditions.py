"""Conditions of the gate about ranking, slices and findings. Each yields the reasons against promotion."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config import GateSection
from posttrain.evaluation.figures import SEVERITIES, Comparison, Figures
from posttrain.evaluation.gate.answer_conditions import FINDINGS as ANSWER_FINDINGS
from posttrain.evaluation.gate.looks import Look
from posttrain.evaluation.labels import point_range, sample_size


def ranking_conditions(comparison: Comparison, gate: GateSection, look: Look, level: float) -> Iterator[str]:
    """Yield why the gain in ranking accuracy is not enough.

    Args:
        level: as `look_level` returns.
    """
    gain = comparison.gain
    if gain.n_prompts < gate.min_prompts:
        yield f"too few to tell: there are {gain.n_prompts} test prompts, and gate.min_prompts is {gate.min_prompts}"
    if not look.is_within(gate):
        yield used_up(gate, look)
    elif gain.p_value > level:
        shared = (
            f", the level of each of {gate.planned_looks} looks (gate.planned_looks)" if gate.planned_looks > 1 else ""
        )
        yield (
            f"the gain is not statistically significant: p = {gain.p_value:.2g} is above {level:.2g}{shared}; "
            f"gate.max_p_value is {gate.max_p_value:g}"
        )
    elif not gain.bounds(1 - level)[0] > gate.min_gain:
        yield f"the lower bound of the gain's interval does not exceed gate.min_gain ({100 * gate.min_gain:+.1f} points)"


def used_up(gate: GateSection, look: Look) -> str:
    """Return the reason that no further model may be judged on these test prompts."""
    return (
        f"the planned looks at these test prompts are used up (gate.planned_looks: {gate.planned_looks}; this is look "
        f"{look.number}): get fresh test prompts with another data.seed or a new file in data.sources"
    )


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
