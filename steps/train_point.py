"""Train with direct preference optimisation at one point of a sweep."""

from typing import Annotated, Any

from posttrain.config import DpoSection, ModelSection, point_label
from posttrain.evaluation import sweep as library
from posttrain.evaluation.sweep import GridPoint, SweepPoint
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracked
from posttrain.orchestration.step_training import training_stage
from posttrain.training.reference import ReferenceLogps


@step
def train_point(
    values: dict[str, Any],
    reference_logps: ReferenceLogps,
    sft_checkpoint: Checkpoint,
    base: Base,
    model: ModelSection,
    dpo: DpoSection,
    tokens_per_batch: int,
    seed: int,
) -> tuple[
    Annotated[Checkpoint | None, "point_checkpoint"],
    Annotated[SweepPoint, "sweep_point"],
]:
    """Return a checkpoint and its scores on the validation pairs, or the reason why training failed with these values."""
    with tracked(nested=True, point=dpo) as run:
        run.set_tags({"mlflow.runName": point_label(values)})
        job = training_stage(run, base, model, dpo, seed, reference_logps.key, sft_checkpoint.digest)
        grid_point = GridPoint(values, dpo)
        checkpoint, point = library.train_point(grid_point, reference_logps, sft_checkpoint, tokens_per_batch, job)
        if point.scores:
            run.log_metrics(point.scores.metrics())
        else:
            run.fail(str(point.failure))
    return checkpoint, point
