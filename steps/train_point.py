"""Direct preference optimisation at one point of a sweep."""

from typing import Annotated, Any

from posttrain import sweep as library
from posttrain.checkpoint import Base, Checkpoint
from posttrain.config import DpoSection, ModelSection, point_label
from posttrain.reference import ReferenceLogps
from posttrain.sweep import SweepPoint
from posttrain.tracking import metrics_callback
from posttrain.training import Stage
from steps._step import step
from steps._tracking import tracked
from steps._workspace import workspace


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
        stage = Stage(base, model, seed, workspace(), callbacks=(metrics_callback(run),))
        checkpoint, point = library.train_point(values, reference_logps, sft_checkpoint, dpo, tokens_per_batch, stage)
        if point.scores:
            run.log_metrics(point.scores.metrics())
        else:
            run.fail(str(point.failure))
    return checkpoint, point
