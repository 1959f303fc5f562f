"""The gate: whether a model has earned its place, and why (not)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from posttrain.config import GateSection
from posttrain.evaluate import Figures


class Promotion(BaseModel):
    """The decision and its reasons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promoted: bool
    reasons: list[str]


def decide(figures: Figures, gate: GateSection) -> Promotion:
    """Promotes the newest model if it beats its predecessor on the same test pairs, by enough and beyond chance."""
    name, comparison = list(figures.comparisons.items())[-1]
    newer, older = (stage if stage == "base" else stage.upper() for stage in name.split("_vs_"))
    gain, p_value = comparison.gain, comparison.p_value
    evidence = (
        f"{newer} orders {100 * gain.value:+.1f} points more test pairs right than {older} "
        f"({100 * gain.low:+.1f} to {100 * gain.high:+.1f}, p = {p_value:.2g}, {figures.n_pairs} pairs)"
    )
    against = []
    if not gain.value > gate.min_gain:
        against.append(f"gate.min_gain asks for more than {100 * gate.min_gain:+.1f} points")
    elif not p_value <= gate.max_p_value:
        against.append(
            f"a difference like this comes by chance too often: gate.max_p_value asks for p <= {gate.max_p_value:g}"
        )
    return Promotion(promoted=not against, reasons=[evidence, *against])
