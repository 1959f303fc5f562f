"""A sweep: several DPO trainings from one SFT checkpoint, compared on the validation pairs, and the best one chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from posttrain.config import DpoSection, EvaluationSection, SweepSection, point_label
from posttrain.errors import UserError
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.figures import Comparison
from posttrain.evaluation.intervals import Estimate, cluster_share
from posttrain.evaluation.labels import METRICS
from posttrain.evaluation.statistics import compare, correct
from posttrain.forward.ranks import LoadedBy, on_ranks
from posttrain.models.checkpoint import Checkpoint
from posttrain.training.dpo import train_dpo
from posttrain.training.reference import ReferenceLogps
from posttrain.training.trainer import TrainingJob

MEASURES = ("likelihood_accuracy", "implicit_accuracy")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ValidationScores(_Record):
    """Scores of each validation pair under a trained point, in the order of the pairs."""

    margins_nats: list[float]
    """log p(chosen) - log p(rejected), summed over completion tokens."""
    reference_margins_nats: list[float]
    """The same under the SFT checkpoint."""
    prompts: list[int]
    """Number of each pair's prompt."""
    drift_nats: float
    """Distance of the policy from SFT: mean of |log p(y) - log p_SFT(y)| over all responses y."""

    def margins(self, measure: str) -> np.ndarray:
        """Return the margin that a measure of accuracy uses. It is above 0 if the chosen response ranks higher."""
        margins = np.array(self.margins_nats)
        return margins - np.array(self.reference_margins_nats) if measure == "implicit_accuracy" else margins

    def metrics(self) -> dict[str, float]:
        """Return the figures that are logged to MLflow to compare the points."""
        accuracies = {measure: float(correct(self.margins(measure)).mean()) for measure in MEASURES}
        return {
            "sweep/accuracy": accuracies["likelihood_accuracy"],
            "sweep/accuracy_implicit": accuracies["implicit_accuracy"],
            "sweep/drift_nats": self.drift_nats,
        }


class SweepPoint(_Record):
    """One point of the grid after its training."""

    values: dict[str, Any]
    """Settings of the grid and their values."""
    scores: ValidationScores | None
    failure: str | None
    """Reason why there are no scores."""


class PointFigures(_Record):
    """One row of the table. There are no figures if the training failed."""

    values: dict[str, Any]
    likelihood_accuracy: Estimate | None = None
    implicit_accuracy: Estimate | None = None
    drift_nats: float | None = None
    failure: str | None = None

    @property
    def label(self) -> str:
        """Return the values in words."""
        return point_label(self.values)


class SweepOutcome(_Record):
    """Figures of every point on the same validation pairs, and the chosen point."""

    points: list[PointFigures]
    chosen: int
    """Index of the chosen point."""
    chosen_by: str
    n_pairs: int
    n_prompts: int
    confidence: float
    sft_accuracy: Estimate
    """Preference accuracy of the SFT checkpoint on the same pairs."""
    runner_up: int | None
    """Index of the second-best point; None if only one was trained."""
    comparison: Comparison | None
    """Comparison of the chosen point with the runner-up, by `chosen_by`."""

    @property
    def reason(self) -> str:
        """Return why this point was chosen, with the p-value."""
        chosen = self.points[self.chosen]
        if self.runner_up is None or self.comparison is None:
            return f"{chosen.label}, because no other point was trained"
        second, gain = self.points[self.runner_up], self.comparison.gain.value
        if gain == 0:
            return (
                f"{chosen.label}, which ranks as many pairs correctly as {second.label} and has not moved further from SFT "
                f"({chosen.drift_nats:.2f} nats per response against {second.drift_nats:.2f})"
            )
        return (
            f"{chosen.label}, which ranks {100 * gain:.1f} points more pairs correctly by {METRICS[self.chosen_by].short} than "
            f"{second.label} (p = {self.comparison.p_value:.2g})"
        )


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid before its training."""

    values: dict[str, Any]
    """Settings of the grid and their values."""
    dpo: DpoSection
    """The whole section with these values."""


def train_point(
    point: GridPoint, reference: ReferenceLogps, sft_checkpoint: Checkpoint, tokens_per_batch: int, job: TrainingJob
) -> tuple[Checkpoint | None, SweepPoint]:
    """Train DPO at one point of the grid, and return it with its scores on the validation pairs.

    If the training diverges or does not fit into the GPU's memory, there is no checkpoint, and the point contains the reason.
    The other points are still trained.
    """
    try:
        checkpoint = train_dpo(reference, sft_checkpoint, point.dpo, job)
        source = LoadedBy(job.base, job.model, checkpoint, point.dpo.processes)
        scores = score_validation(source, reference, tokens_per_batch)
    except (UserError, torch.OutOfMemoryError) as error:
        return None, SweepPoint(values=point.values, scores=None, failure=str(error).splitlines()[0])
    return checkpoint, SweepPoint(values=point.values, scores=scores, failure=None)


def score_validation(source: LoadedBy, reference: ReferenceLogps, tokens_per_batch: int) -> ValidationScores:
    """Return the scores of the validation pairs under a checkpoint and under the reference.

    Raises:
        UserError: no validation pair is left, or the log-probabilities are NaN or infinite.
    """
    rows = reference.rows("validation")
    if len(rows) == 0:
        raise UserError(
            f"sweep: no validation pair is left to compare the points on ({reference.cut['validation']}): raise "
            "data.validation_size"
        )
    with on_ranks(source) as ranks:
        found = ranks.score(rows, tokens_per_batch, "validation pairs")
    stored = reference.of(rows, reference.lengths)
    logps = np.stack([found.chosen_logps, found.rejected_logps]).astype(np.float64)
    reference_logps = np.stack([stored.chosen_logps, stored.rejected_logps]).astype(np.float64)
    if not np.isfinite(logps).all():
        raise UserError(
            "dpo: log-probabilities of validation pairs are not finite, as training diverged: lower dpo.learning_rate"
        )
    return ValidationScores(
        margins_nats=(logps[0] - logps[1]).tolist(),
        reference_margins_nats=(reference_logps[0] - reference_logps[1]).tolist(),
        prompts=Clusters.of([tuple(prompt) for prompt in rows["prompt_ids"]]).index.tolist(),
        drift_nats=float(np.abs(logps - reference_logps).mean()),
    )


def choose(points: list[SweepPoint], sweep: SweepSection, evaluation: EvaluationSection) -> SweepOutcome:
    """Choose the point with the highest accuracy on the validation pairs. Ties go to the one that moved least from SFT.

    Raises:
        UserError: every point failed.
    """
    measure = sweep.choose_by
    trained = {i: point.scores for i, point in enumerate(points) if point.scores is not None}
    if not trained:
        examples = {point.failure: point_label(point.values) for point in reversed(points)}  # a failure has one line
        lines = (f"sweep: every point failed, for example {label}: {failure}" for failure, label in examples.items())
        raise UserError("\n".join(lines))
    right = {i: correct(scores.margins(measure)) for i, scores in trained.items()}
    chosen, *others = sorted(trained, key=lambda i: (-right[i].sum(), trained[i].drift_nats, i))
    runner_up = others[0] if others else None
    clusters = Clusters.of(trained[chosen].prompts)
    sft_right = correct(np.array(trained[chosen].reference_margins_nats))

    def share(right: np.ndarray) -> Estimate:
        return cluster_share(right, clusters, evaluation.confidence)

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
        n_prompts=clusters.n,
        confidence=evaluation.confidence,
        sft_accuracy=share(sft_right),
        runner_up=runner_up,
        comparison=None if runner_up is None else compare(right[chosen], right[runner_up], evaluation, clusters),
    )
