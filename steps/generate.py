"""Generate the models' answers to test prompts."""

from typing import Annotated

from posttrain.chat.tokens import PairTokens
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.stored import Preferences
from posttrain.evaluation.answers import generations as library
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.verification.judging import lazy_scores
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.model_versions.champion_checkpoint import champion_checkpoint
from posttrain.orchestration.running_step.run_figures import log_generations
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked


@step
def generate(
    preferences: Preferences,
    tokens: PairTokens,
    base: Base,
    sft_checkpoint: Checkpoint,
    dpo_checkpoint: Checkpoint | None,
    champion: Champion,
    model: ModelSection,
    evaluation: EvaluationSection,
    verifier: Champion | None,
) -> Annotated[Generations, "generations"]:
    """Return the answers of SFT, DPO and the champion, as far as they exist, to the same prompts."""
    models = EvaluatedModels(base, model, sft_checkpoint, dpo_checkpoint, champion_checkpoint(champion))
    scores = None
    if verifier:
        scores = lazy_scores(champion_checkpoint(verifier), models, preferences.test["prompt"], evaluation)
    with tracked(nested=False) as run:
        generations = library.generate(preferences, tokens, models, evaluation, scores)
        log_generations(run, generations)
    return generations
