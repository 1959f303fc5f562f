"""Decides whether a verifier is promoted to production, and gives the reasons."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config import GateSection
from posttrain.evaluation.figures import Comparison, worse_slices
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.gate.foresight import power
from posttrain.evaluation.gate.looks import Look, look_level, shrunken_gain
from posttrain.evaluation.gate.ranking_conditions import ranking_conditions
from posttrain.evaluation.labels import percent, point_range, points, sample_size
from posttrain.evaluation.verification.verifier_figures import VerifierFigures

OPPONENTS = {
    "champion": "the champion",
    "length": "always preferring the longer or the shorter answer, whichever is better",
}


def decide_verifier(figures: VerifierFigures, gate: GateSection, look: Look | None = None) -> Promotion:
    """Return whether a verifier is promoted, and why.

    It is promoted if it ranks more held-out pairs rightly than its opponent, beyond chance, tells right from wrong answers of
    different questions, got worse in no slice, and its choice among answers is no worse than a random one. The opponent is the
    champion, or, if there is none, the length of the answers.

    Args:
        look: at the test prompts; None if it is the first one.
    """
    look, level, gain = look or Look(), look_level(gate), figures.gain
    evidence = (
        f"the verifier ranks {abs(100 * gain.value):.1f} points {'fewer' if gain.value < 0 else 'more'} test pairs correctly than "
        f"{OPPONENTS[figures.opponent]} ({point_range(gain)}, p = {gain.p_value:.2g}, {sample_size(figures)}; {power(gain, gate)})"
    )
    comparison = Comparison(gain=gain, n_gained=figures.n_gained, n_lost=figures.n_lost)
    against = [
        *ranking_conditions(comparison, gate, look, level),
        *_slices(figures, gate),
        *_absolute(figures),
        *_choice(figures),
    ]
    if not against:
        evidence += (
            f". The gain is selected, as it was promoted for being large: corrected for this, it is "
            f"{100 * shrunken_gain(gain, level):+.1f} points"
        )
    return Promotion(promoted=not against, opponent=figures.opponent, reasons=[evidence, *against])


def _slices(figures: VerifierFigures, gate: GateSection) -> Iterator[str]:
    tested = [part for part in figures.slices if part.n_pairs >= gate.min_slice_pairs]
    for part in worse_slices(tested, figures.comparison, gate.max_slice_loss, figures.confidence):
        loss = part.gains[figures.comparison]
        yield (
            f"accuracy on {part.by} {part.name} fell: {100 * loss.value:+.1f} points ({point_range(loss)}, {sample_size(part)}); "
            f"gate.max_slice_loss allows a loss of {100 * gate.max_slice_loss:.1f} points"
        )


def _absolute(figures: VerifierFigures) -> Iterator[str]:
    if (auc := figures.absolute.auc).high < 0.5:
        yield f"wrong answers score higher than right ones to other questions: AUC {percent(auc)} %"


def _choice(figures: VerifierFigures) -> Iterator[str]:
    for curve, answers in (
        (figures.best_of_sampled, "sampled answers"),
        (figures.best_of_held_out, "held-out answers"),
    ):
        if curve and (last := curve[-1]).gain.high < 0:
            yield f"its choice among {last.n} {answers} is worse than a random one: {points(last.gain)} points"
