"""Generate several answers to each test prompt, among which a verifier chooses."""

from typing import Annotated

from posttrain.chat.tokens import PairTokens
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.stored import Preferences
from posttrain.evaluation.verification import graded_samples as library
from posttrain.evaluation.verification.graded_samples import SampledAnswers
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.running_step.step import step


@step
def sample_answers(
    preferences: Preferences,
    tokens: PairTokens,
    sft_checkpoint: Checkpoint,
    base: Base,
    model: ModelSection,
    evaluation: EvaluationSection,
    n_answers: int,
    temperature: float,
) -> Annotated[SampledAnswers, "sampled_answers"]:
    """Return the answers of the model that the verifier starts from, where they can be graded."""
    drawn = evaluation.generations.model_copy(update={"temperature": temperature})
    section = evaluation.model_copy(update={"generations": drawn})
    return library.sample_answers(preferences, tokens, (base, model, sft_checkpoint), section, n_answers)
