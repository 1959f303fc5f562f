"""Promote the verifier to production, or refuse it."""

from typing import Annotated

from zenml import get_step_context
from zenml.artifacts.unmaterialized_artifact import UnmaterializedArtifact

from posttrain.config import GateSection
from posttrain.evaluation.gate import verifier_decision as library
from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.verification.verifier_evaluation import VerifierEvaluation
from posttrain.orchestration.gate_ledger import take_look
from posttrain.orchestration.model_versions.registry import JudgedModel, result_name, settle
from posttrain.orchestration.running_step.run_figures import log_promotion
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked


@step
def promote_verifier(
    evaluation: VerifierEvaluation,
    candidate: UnmaterializedArtifact,
    champion: Champion,
    gate: GateSection,
    name: str,
) -> Annotated[Promotion, "promotion"]:
    """Return whether the verifier is promoted, and why. In either case it is registered as a version of the model."""
    with tracked(nested=False) as run:
        look = take_look(name, evaluation.figures, gate)
        judged = JudgedModel(
            name=name,
            version=result_name(evaluation.figures, gate.model_dump()),
            promotion=library.decide_verifier(evaluation.figures, gate, look),
            opponent=champion,
            candidate=candidate,
        )
        promotion = settle(judged, get_step_context().pipeline_run, run.tracker)
        log_promotion(run, promotion)
    return promotion
