"""Evaluate a verifier on the held-out pairs."""

from typing import Annotated

from posttrain.chat.tokens import PairTokens
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.stored import Preferences
from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.verification import verifier_evaluation as library
from posttrain.evaluation.verification.graded_samples import SampledAnswers
from posttrain.evaluation.verification.verifier_evaluation import EvaluatedVerifiers, VerifierEvaluation
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.model_versions.champion_checkpoint import champion_checkpoint
from posttrain.orchestration.running_step.run_figures import log_verifier
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked


@step
def evaluate_verifier(
    preferences: Preferences,
    tokens: PairTokens,
    sampled_answers: SampledAnswers,
    verifier_checkpoint: Checkpoint,
    champion: Champion,
    base: Base,
    model: ModelSection,
    evaluation: EvaluationSection,
) -> Annotated[VerifierEvaluation, "verifier_evaluation"]:
    """Return the figures of the verifier and of the one in production, on the same test pairs."""
    models = EvaluatedVerifiers(base, model, verifier_checkpoint, champion_checkpoint(champion))
    with tracked(nested=False) as run:
        result = library.evaluate_verifier(models, preferences, tokens, sampled_answers, evaluation)
        log_verifier(run, result.figures)
    return result
