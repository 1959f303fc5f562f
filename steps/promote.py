"""The gate to production."""

from typing import Annotated

from zenml import get_step_context
from zenml.artifacts.unmaterialized_artifact import UnmaterializedArtifact

from posttrain.config import GateSection
from posttrain.evaluation import gate as library
from posttrain.evaluation.gate import Champion, Promotion
from posttrain.evaluation.scoring import Evaluation
from posttrain.orchestration.registry import result_name, settle
from posttrain.orchestration.run_figures import log_promotion
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracked


@step
def promote(
    evaluation: Evaluation, candidate: UnmaterializedArtifact, champion: Champion, gate: GateSection, name: str
) -> Annotated[Promotion, "promotion"]:
    """Whether the model is promoted, and why; either way it becomes a version of the model in the registries."""
    with tracked(nested=False) as run:
        promotion = settle(
            name,
            result_name(evaluation.figures, gate.model_dump()),
            library.decide(evaluation.figures, gate),
            champion,
            candidate,
            get_step_context().pipeline_run,
            run.tracker,
        )
        log_promotion(run, promotion)
    return promotion
