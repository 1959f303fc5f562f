"""Choose the point of a sweep that is evaluated on the test pairs."""

from typing import Annotated

from zenml.artifacts.unmaterialized_artifact import UnmaterializedArtifact

from posttrain.config import EvaluationSection, SweepSection
from posttrain.evaluation import sweep as library
from posttrain.evaluation.sweep import SweepOutcome, SweepPoint
from posttrain.models.checkpoint import Checkpoint
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.reporting.sweep_report import sweep_picture


@step
def choose_point(
    points: list[SweepPoint],
    checkpoints: list[UnmaterializedArtifact],  # only the chosen one is loaded
    sweep: SweepSection,
    evaluation: EvaluationSection,
) -> tuple[
    Annotated[Checkpoint, "dpo_checkpoint"],
    Annotated[SweepOutcome, "sweep_outcome"],
]:
    """Return the checkpoint of the point that is best on the validation pairs, and a comparison of all points."""
    with tracked(nested=False) as run:
        outcome = library.choose(points, sweep, evaluation)
        run.set_tags({"sweep.chosen": outcome.points[outcome.chosen].label})
        run.log_dict(outcome.model_dump(), "sweep.json")
        run.log_text(sweep_picture(outcome), "sweep.svg")
        checkpoint = checkpoints[outcome.chosen].load()
    return checkpoint, outcome
