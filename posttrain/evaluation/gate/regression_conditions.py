"""Conditions of the gate about what a model could do before: further sets of pairs, and the SFT data."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config import GateSection
from posttrain.evaluation.clustered.gains import holm
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.labels import NAMES, plain, points


def set_conditions(figures: Figures, comparison: str, gate: GateSection) -> Iterator[str]:
    """Yield the sets of `evaluation.sets` on which the model got worse, with Holm's correction for their number."""
    gains = {
        name: found.comparisons[comparison].gain
        for name, found in figures.sets.items()
        if found.n_pairs >= gate.min_slice_pairs
    }
    p_values = holm([gain.p_beyond(-gate.max_set_loss) for gain in gains.values()])
    for (name, gain), p_value in zip(gains.items(), p_values, strict=True):
        if p_value <= 1 - figures.confidence:
            yield from lost(f"accuracy on the set {name}", gain, gate)


def lost(what: str, gain: Estimate, gate: GateSection) -> Iterator[str]:
    """Yield that a share fell by more than the gate allows for a set, if its interval says so.

    Args:
        what: name of the share, e.g. `accuracy on the set llmbar`.
    """
    if gain.high < -gate.max_set_loss:
        yield f"{what} fell: {points(gain)} points; gate.max_set_loss allows a loss of {100 * gate.max_set_loss:.1f} points"


def forgetting_conditions(figures: Figures, gate: GateSection) -> Iterator[str]:
    """Yield that the model forgot what SFT taught."""
    rises = figures.forgetting.rises if figures.forgetting else {}
    for comparison, rise in rises.items():
        if rise.low > gate.max_forgetting_nats:
            yield (
                f"the loss on held-out SFT data rose by {plain(rise)} nats per token against {NAMES[comparison.split('_vs_')[1]]} "
                f"(gate.max_forgetting_nats: {gate.max_forgetting_nats:g})"
            )
