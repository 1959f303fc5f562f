"""Conditions of the gate about length: a gain that comes from the length of the responses is not enough."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config import GateSection
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.labels import points


def length_conditions(figures: Figures, comparison: str, gate: GateSection) -> Iterator[str]:
    """Yield why the gain may come from the length of the responses alone."""
    gain, per_token = figures.comparisons[comparison].gain, figures.length.per_token[comparison].gain
    if per_token.high < 0:
        yield f"accuracy per token, on which length has no effect, fell: {points(per_token)} points"
    elif gain.low > gate.min_gain and not per_token.low > gate.min_gain:
        yield (
            f"accuracy per token, on which length has no effect, gained {points(per_token)} points, and the lower bound does not "
            f"exceed gate.min_gain ({100 * gate.min_gain:+.1f} points)"
        )
