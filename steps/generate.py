"""Generate the models' answers to test prompts."""

from typing import Annotated

from posttrain.chat.tokens import PairTokens
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.preferences import Preferences
from posttrain.evaluation import generations as library
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.generations import Generations
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.run_figures import log_generations
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracked


@step
def generate(
    preferences: Preferences,
    tokens: PairTokens,
    base: Base,
    sft_checkpoint: Checkpoint,
    dpo_checkpoint: Checkpoint | None,
    model: ModelSection,
    evaluation: EvaluationSection,
) -> Annotated[Generations, "generations"]:
    """Return the answers of SFT and, if DPO was trained, of DPO to the same prompts."""
    models = EvaluatedModels(base, model, sft_checkpoint, dpo_checkpoint)
    with tracked(nested=False) as run:
        generations = library.generate(preferences, tokens, models, evaluation)
        log_generations(run, generations)
    return generations
