"""Promote the model to production, or refuse it."""

from typing import Annotated

from zenml import get_step_context
from zenml.artifacts.unmaterialized_artifact import UnmaterializedArtifact

from posttrain.config import GateSection
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.gate import decision as library
from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.gate.rejection import Rejection, respect
from posttrain.evaluation.scoring import Evaluation
from posttrain.orchestration.gate_ledger import take_look
from posttrain.orchestration.model_versions.registry import JudgedModel, result_name, settle
from posttrain.orchestration.running_step.run_figures import log_promotion
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked


@step
def promote(
    evaluation: Evaluation,
    generations: Generations,
    candidate: UnmaterializedArtifact,
    champion: Champion,
    rejection: Rejection,
    benchmarks: BenchmarkFigures | None,
    gate: GateSection,
    name: str,
) -> Annotated[Promotion, "promotion"]:
    """Return whether the model is promoted, and why. In either case it is registered as a version of the model."""
    with tracked(nested=False) as run:
        answers = {"answers": generations.answers_digest}
        scores = {"benchmarks": benchmarks.digest} if benchmarks else {}
        look = take_look(name, evaluation.figures, gate)
        judged = JudgedModel(
            name=name,
            version=result_name(evaluation.figures, gate.model_dump() | answers | scores),
            promotion=respect(rejection, library.decide(evaluation.figures, gate, generations, look, benchmarks)),
            opponent=champion,
            candidate=candidate,
        )
        promotion = settle(judged, get_step_context().pipeline_run, run.tracker)
        log_promotion(run, promotion)
    return promotion
