"""Several DPO trainings from one SFT checkpoint: each point measured on validation pairs, and one of them chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from posttrain.config import DpoSection, EvaluationSection, SweepSection, point_label
from posttrain.errors import UserError
from posttrain.evaluation.figures import Comparison
from posttrain.evaluation.intervals import Estimate, wilson
from posttrain.evaluation.labels import METRICS
from posttrain.evaluation.statistics import compare, correct
from posttrain.forward.logprobs import score_pairs
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_model
from posttrain.training.dpo import train_dpo
from posttrain.training.reference import ReferenceLogps
from posttrain.training.trainer import TrainingJob

MEASURES = ("likelihood_accuracy", "implicit_accuracy")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ValidationScores(_Record):
    """What a trained point makes of each validation pair, in the order of the pairs."""

    margins_nats: list[float]
    """log p(chosen) - log p(rejected), summed over completion tokens."""
    reference_margins_nats: list[float]
    """The same under the SFT checkpoint."""
    drift_nats: float
    """How far the policy has moved: the mean of |log p(y) - log p_SFT(y)| over all responses y."""

    def margins(self, measure: str) -> np.ndarray:
        """What a measure of accuracy looks at: above 0 where the chosen response is ahead."""
        margins = np.array(self.margins_nats)
        return margins - np.array(self.reference_margins_nats) if measure == "implicit_accuracy" else margins

    def metrics(self) -> dict[str, float]:
        """The figures by which MLflow compares the points."""
        accuracies = {measure: float(correct(self.margins(measure)).mean()) for measure in MEASURES}
        return {
            "sweep/accuracy": accuracies["likelihood_accuracy"],
            "sweep/accuracy_implicit": accuracies["implicit_accuracy"],
            "sweep/drift_nats": self.drift_nats,
        }


class SweepPoint(_Record):
    """One point of the grid after its training."""

    values: dict[str, Any]
    """What the grid sets."""
    scores: ValidationScores | None
    failure: str | None
    """Why there are no scores."""


class PointFigures(_Record):
    """One row of the table; without figures where the training failed."""

    values: dict[str, Any]
    likelihood_accuracy: Estimate | None = None
    implicit_accuracy: Estimate | None = None
    drift_nats: float | None = None
    failure: str | None = None

    @property
    def label(self) -> str:
        """The values in words."""
        return point_label(self.values)


class SweepOutcome(_Record):
    """Every point on the same validation pairs, and the chosen one."""

    points: list[PointFigures]
    chosen: int
    """Index of the chosen point."""
    chosen_by: str
    n_pairs: int
    confidence: float
    sft_accuracy: Estimate
    """Preference accuracy of the SFT checkpoint on the same pairs."""
    runner_up: int | None
    """Index of the point that would be chosen without the chosen one; None if no other was trained."""
    comparison: Comparison | None
    """The chosen point against the runner-up, by `chosen_by`."""

    @property
    def reason(self) -> str:
        """Why this point, and how sure that is."""
        chosen = self.points[self.chosen]
        if self.runner_up is None or self.comparison is None:
            return f"{chosen.label}, as no other point was trained"
        second, gain = self.points[self.runner_up], self.comparison.gain.value
        if gain == 0:
            return (
                f"{chosen.label}, which orders as many pairs right as {second.label} and has not moved further from SFT "
                f"({chosen.drift_nats:.2f} nats a response against {second.drift_nats:.2f})"
            )
        return (
            f"{chosen.label}, which orders {100 * gain:.1f} points more pairs right by {METRICS[self.chosen_by].short} than "
            f"{second.label} (p = {self.comparison.p_value:.2g})"
        )


def train_point(
    values: dict[str, Any],
    reference: ReferenceLogps,
    sft_checkpoint: Checkpoint,
    dpo: DpoSection,
    tokens_per_batch: int,
    stage: TrainingJob,
) -> tuple[Checkpoint | None, SweepPoint]:
    """DPO at one point of the grid and its scores on the validation pairs, or no checkpoint and why it failed.

    What the point's own values can be guilty of is its failure: a training that diverges, or a batch that does not fit into
    the GPU's memory. The other points are none the worse for it.
    """
    try:
        checkpoint = train_dpo(reference, sft_checkpoint, dpo, stage)
        scores = score_validation(checkpoint, reference, tokens_per_batch, stage)
    except (UserError, torch.OutOfMemoryError) as error:
        return None, SweepPoint(values=values, scores=None, failure=str(error).splitlines()[0])
    return checkpoint, SweepPoint(values=values, scores=scores, failure=None)


def score_validation(
    checkpoint: Checkpoint,
    reference: ReferenceLogps,
    tokens_per_batch: int,
    stage: TrainingJob,
) -> ValidationScores:
    """What a checkpoint makes of the validation pairs, beside what the reference made of them.

    Raises:
        UserError: no validation pair is left, or the model diverged.
    """
    rows = reference.rows("validation")
    if len(rows) == 0:
        raise UserError(
            f"sweep: no validation pair is left to choose by ({reference.cut['validation']}): raise data.validation_size"
        )
    policy = load_model(stage.base, stage.model, checkpoint)
    found, stored = score_pairs(policy, rows, stage.model, tokens_per_batch, "validation pairs"), reference.of(rows)
    logps = np.stack([found.chosen_logps, found.rejected_logps]).astype(np.float64)
    reference_logps = np.stack([stored.chosen_logps, stored.rejected_logps]).astype(np.float64)
    if not np.isfinite(logps).all():
        raise UserError("dpo: log-probabilities of validation pairs are not finite: the training diverged")
    return ValidationScores(
        margins_nats=(logps[0] - logps[1]).tolist(),
        reference_margins_nats=(reference_logps[0] - reference_logps[1]).tolist(),
        drift_nats=float(np.abs(logps - reference_logps).mean()),
    )


def choose(points: list[SweepPoint], sweep: SweepSection, evaluation: EvaluationSection) -> SweepOutcome:
    """The point with the highest accuracy on the validation pairs; of equals the one that moved least from SFT.

    Raises:
        UserError: every point failed.
    """
    measure = sweep.choose_by
    trained = {i: point.scores for i, point in enumerate(points) if point.scores is not None}
    if not trained:
        examples = {point.failure: point_label(point.values) for point in reversed(points)}  # a failure has one line
        lines = (f"sweep: every point failed, e.g. {label}: {failure}" for failure, label in examples.items())
        raise UserError("\n".join(lines))
    right = {i: correct(scores.margins(measure)) for i, scores in trained.items()}
    chosen, *others = sorted(trained, key=lambda i: (-right[i].sum(), trained[i].drift_nats, i))
    runner_up = others[0] if others else None
    sft_right = correct(np.array(trained[chosen].reference_margins_nats))

    def share(right: np.ndarray) -> Estimate:
        return wilson(float(right.sum()), len(right), evaluation.confidence)

    def figures(point: SweepPoint) -> PointFigures:
        if point.scores is None:
            return PointFigures(values=point.values, failure=point.failure)
        accuracies = {name: share(correct(point.scores.margins(name))) for name in MEASURES}
        return PointFigures(values=point.values, drift_nats=point.scores.drift_nats, **accuracies)

    return SweepOutcome(
        points=[figures(point) for point in points],
        chosen=chosen,
        chosen_by=measure,
        n_pairs=len(sft_right),
        confidence=evaluation.confidence,
        sft_accuracy=share(sft_right),
        runner_up=runner_up,
        comparison=None if runner_up is None else compare(right[chosen], right[runner_up], evaluation),
    )
