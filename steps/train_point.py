"""Direct preference optimisation at one point of a sweep."""

from typing import Annotated, Any

from posttrain.config import DpoSection, ModelSection, point_label
from posttrain.evaluation import sweep as library
from posttrain.evaluation.sweep import SweepPoint
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
    """A checkpoint and its scores on the validation pairs, or, where the values let no training succeed, the reason."""
    with tracked(nested=True, point=dpo) as run:
        run.set_tags({"mlflow.runName": point_label(values)})
        stage = training_stage(run, base, model, dpo, seed, reference_logps.key, sft_checkpoint.digest)
        checkpoint, point = library.train_point(values, reference_logps, sft_checkpoint, dpo, tokens_per_batch, stage)
        if point.scores:
            run.log_metrics(point.scores.metrics())
        else:
            run.fail(str(point.failure))
    return checkpoint, point
