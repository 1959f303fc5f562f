"""The promotion gate: decides whether a model is promoted to production, and gives the reasons."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from posttrain.config import GateSection
from posttrain.evaluation.figures import SEVERITIES, Comparison, Figures
from posttrain.evaluation.labels import STAGES, point_range

NAMES = STAGES | {"champion": "the champion"}


class Champion(BaseModel):
    """The model in production, identified by its version's metadata. All fields are None if there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str | None = None
    """Digest of its checkpoint."""
    version: str | None = None
    """Its model version in ZenML's registry."""
    artifact: str | None = None
    """Id of the artifact version of its checkpoint."""


class Promotion(BaseModel):
    """The decision about a model and its reasons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promoted: bool
    opponent: str
    """The model it was compared with: `champion`, `sft` or `base`."""
    reasons: list[str]
    """The comparison first, then each condition that the model does not meet."""


def decide(figures: Figures, gate: GateSection) -> Promotion:
    """Return whether the newest model is promoted, and why.

    It is promoted if it beats its opponent, no slice got worse and no finding blocks it. The opponent is the champion, or, if
    there is none, the previous stage of the same run.
    """
    newer, older = figures.newest, figures.opponent
    comparison = figures.comparisons[f"{newer}_vs_{older}"]
    gain = comparison.gain
    evidence = (
        f"{NAMES[newer]} ranks {abs(100 * gain.value):.1f} points {'fewer' if gain.value < 0 else 'more'} test pairs correctly "
        f"than {NAMES[older]} ({point_range(gain)}, p = {comparison.p_value:.2g}, {figures.n_pairs} pairs)"
    )
    against = [*_gain(comparison, gate), *_slices(figures, f"{newer}_vs_{older}", gate), *_findings(figures, gate)]
    return Promotion(promoted=not against, opponent=older, reasons=[evidence, *against])


def _gain(comparison: Comparison, gate: GateSection) -> Iterator[str]:
    if not comparison.gain.low > gate.min_gain:
        yield f"the lower bound of the gain's interval does not exceed gate.min_gain ({100 * gate.min_gain:+.1f} points)"
    elif not comparison.p_value <= gate.max_p_value:
        yield (
            f"the gain is not statistically significant: p = {comparison.p_value:.2g} is above "
            f"gate.max_p_value {gate.max_p_value:g}"
        )


def _slices(figures: Figures, comparison: str, gate: GateSection) -> Iterator[str]:
    for part in figures.slices:
        gain = part.gains[comparison]
        if part.n_pairs >= gate.min_slice_pairs and gain.high < -gate.max_slice_loss:
            yield (
                f"accuracy on {part.by} {part.name} fell: {100 * gain.value:+.1f} points ({point_range(gain)}, "
                f"{part.n_pairs} pairs); gate.max_slice_loss allows a loss of {100 * gate.max_slice_loss:.1f} points"
            )


def _findings(figures: Figures, gate: GateSection) -> Iterator[str]:
    if gate.block_severity == "never":
        return
    least = SEVERITIES.index(gate.block_severity)
    for finding in figures.findings:
        if SEVERITIES.index(finding.severity) >= least:
            yield f"{finding.severity} {finding.rule}: {finding.title} (gate.block_severity: {gate.block_severity})"
