"""How good a verifier is on held-out questions: plain values that are written to JSON."""

from __future__ import annotations

from pydantic import Field

from posttrain.evaluation.clustered.gains import Gain
from posttrain.evaluation.figures import Calibration, Slice, WrongPair
from posttrain.evaluation.intervals import Estimate, Result
from posttrain.evaluation.verification.best_of_n import BestOf


class AbsoluteFigures(Result):
    """The question whether an answer is right, asked of each answer alone: chosen ones are right, rejected ones wrong."""

    n_answers: int
    n_ambiguous: int
    """Answers that are left out, because one pair prefers them and another rejects them."""
    auc: Estimate
    """Probability that a right answer scores higher than a wrong one to any question. Chance gives one half."""
    accuracy: Estimate
    """Share of answers that are judged rightly by probability above or below one half."""
    larger_class: float
    """Accuracy of always giving the more frequent verdict."""
    calibration: Calibration
    """Of the probability that an answer is right: sigmoid(scale x score + offset)."""
    scale: float
    offset: float
    n_fitted: int
    """Number of validation answers that scale and offset were fitted to; 0: they are 1 and 0, as there are too few."""


class LengthBias(Result):
    """Relation of a verifier's preferences to the length of answers."""

    prefer_longer: Estimate
    """Accuracy of always preferring the longer answer."""
    baseline: Estimate
    """Accuracy of always preferring the longer or always the shorter answer, whichever is better."""
    correlation: Estimate | None
    """Spearman's correlation of margin and difference in length, over the pairs; None if one of them is constant."""
    accuracy: dict[str, Estimate]
    """Pairwise accuracy by `chosen_shorter`, `same_length`, `chosen_longer`, as far as there are such pairs."""
    n_pairs: dict[str, int]


class VerifierFigures(Result):
    """All figures of an evaluation of a verifier on the test pairs."""

    n_pairs: int
    n_prompts: int
    """Number of prompts, or of conversations where several pairs continue one: the unit of all intervals and tests."""
    accuracy: Estimate
    """Share of pairs whose chosen answer scores higher; ties count one half."""
    champion_accuracy: Estimate | None
    """The same for the verifier in production."""
    true_agreement: Estimate | None
    """Share of pairs ranked as by the hidden true reward (demo only)."""
    opponent: str
    """`champion`, or `length`: always preferring the longer or always the shorter answer, whichever is better."""
    gain: Gain
    """Accuracy minus that of the opponent on the same pairs."""
    n_gained: int
    n_lost: int
    calibration: Calibration
    """Of the probability that the chosen answer is the better one: sigmoid(difference of the scores)."""
    absolute: AbsoluteFigures
    length: LengthBias
    slices: list[Slice]
    best_of_held_out: list[BestOf]
    """Choosing among the held-out answers to a question; quality is the share of right answers."""
    best_of_sampled: list[BestOf]
    """Choosing among answers of the model that the verifier starts from; quality is the true reward (demo only)."""
    wrong: list[WrongPair]
    """Wrongly ranked pairs, the most confident errors first."""
    cut: dict[str, int]
    """Number of test pairs that were truncated or left out, by reason."""
    confidence: float
    seed: int
    digests: dict[str, str] = Field({})
    """Digests of the data (`preferences`, `test_prompts`), the opponent and the verifier."""

    @property
    def newest(self) -> str:
        """Name of the model that may be promoted."""
        return "verifier"

    @property
    def comparison(self) -> str:
        """Name of the comparison that decides, e.g. `verifier_vs_champion`."""
        return f"verifier_vs_{self.opponent}"


def verifier_key_figures(figures: VerifierFigures) -> dict[str, float]:
    """Return the figures without intervals, as logged to MLflow: `acc/verifier`, `auc/verifier`, `bon/16`."""
    flat = {
        "acc/verifier": figures.accuracy.value,
        f"gain/{figures.comparison}": figures.gain.value,
        f"p/{figures.comparison}": figures.gain.p_value,
        "auc/verifier": figures.absolute.auc.value,
        "abs/accuracy": figures.absolute.accuracy.value,
        "cal/ece": figures.calibration.ece.value,
        "cal/brier": figures.calibration.brier.value,
        "cal/absolute_ece": figures.absolute.calibration.ece.value,
        "length/prefer_longer": figures.length.prefer_longer.value,
    }
    if figures.champion_accuracy:
        flat["acc/champion"] = figures.champion_accuracy.value
    if figures.true_agreement:
        flat["true/verifier"] = figures.true_agreement.value
    if figures.length.correlation:
        flat["length/correlation"] = figures.length.correlation.value
    flat |= {f"bon/{found.n}": found.gain.value for found in figures.best_of_sampled or figures.best_of_held_out}
    return flat
