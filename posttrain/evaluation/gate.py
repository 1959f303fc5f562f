"""The gate: whether a model has earned its place, and why (not); and who holds that place."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from posttrain.config import GateSection
from posttrain.evaluation.figures import SEVERITIES, Comparison, Figures
from posttrain.evaluation.labels import STAGES

NAMES = STAGES | {"champion": "the champion"}


class Champion(BaseModel):
    """The model in production, as far as its version tells; all None where there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str | None = None
    """Of its checkpoint."""
    version: str | None = None
    """Its version in ZenML's registry."""
    artifact: str | None = None
    """Id of the version of the artifact that holds its checkpoint."""


class Promotion(BaseModel):
    """The decision and its reasons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promoted: bool
    opponent: str
    """What it was held against: `champion`, `sft` or `base`."""
    reasons: list[str]
    """The evidence first, then what speaks against the model, if anything."""


def decide(figures: Figures, gate: GateSection) -> Promotion:
    """Promotes the newest model if it beats the champion, or for a first model the stage before it, and nothing is amiss."""
    newer, older = figures.newest, figures.opponent
    comparison = figures.comparisons[f"{newer}_vs_{older}"]
    gain = comparison.gain
    evidence = (
        f"{NAMES[newer]} orders {100 * gain.value:+.1f} points more test pairs right than {NAMES[older]} "
        f"({100 * gain.low:+.1f} to {100 * gain.high:+.1f}, p = {comparison.p_value:.2g}, {figures.n_pairs} pairs)"
    )
    against = [*_gain(comparison, gate), *_slices(figures, f"{newer}_vs_{older}", gate), *_findings(figures, gate)]
    return Promotion(promoted=not against, opponent=older, reasons=[evidence, *against])


def _gain(comparison: Comparison, gate: GateSection) -> Iterator[str]:
    if not comparison.gain.low > gate.min_gain:
        yield f"gate.min_gain asks for surely more than {100 * gate.min_gain:+.1f} points"
    elif not comparison.p_value <= gate.max_p_value:
        yield f"a difference like this comes by chance too often: gate.max_p_value asks for p <= {gate.max_p_value:g}"


def _slices(figures: Figures, comparison: str, gate: GateSection) -> Iterator[str]:
    for part in figures.slices:
        gain = part.gains[comparison]
        if part.n_pairs >= gate.min_slice_pairs and gain.high < -gate.max_slice_loss:
            yield (
                f"{part.by} {part.name} got worse: {100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to "
                f"{100 * gain.high:+.1f}, {part.n_pairs} pairs); gate.max_slice_loss allows {100 * gate.max_slice_loss:.1f}"
            )


def _findings(figures: Figures, gate: GateSection) -> Iterator[str]:
    if gate.block_severity == "never":
        return
    least = SEVERITIES.index(gate.block_severity)
    for finding in figures.findings:
        if SEVERITIES.index(finding.severity) >= least:
            yield f"{finding.severity} {finding.rule}: {finding.title} (gate.block_severity: {gate.block_severity})"
