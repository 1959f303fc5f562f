"""Conditions of the gate about length: a gain that comes from the length of the responses is not enough."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config import GateSection
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.labels import points


def length_conditions(figures: Figures, comparison: str, gate: GateSection) -> Iterator[str]:
    """Yield why the gain may come from the length of the responses alone."""
    gain, control = figures.comparisons[comparison].gain, figures.length.controls[comparison]
    if gain.low > gate.min_gain and not control.controlled.gain.low > gate.min_gain:
        yield (
            f"without the effect of length, the gain is {points(control.controlled.gain)} points, whose lower bound does not "
            f"exceed gate.min_gain ({100 * gate.min_gain:+.1f} points)"
        )
    if control.per_token.gain.high < 0:
        yield f"accuracy per token fell: {points(control.per_token.gain)} points"
