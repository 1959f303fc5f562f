"""Evaluate the models on the held-out pairs."""

from typing import Annotated

from posttrain.chat.tokens import PairTokens, SftTokens
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.pair_sets import PairSets
from posttrain.data.stored import Preferences
from posttrain.evaluation import scoring as library
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.scoring import Evaluation, EvaluationData
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.model_versions.champion_checkpoint import champion_checkpoint
from posttrain.orchestration.running_step.run_figures import log_evaluation
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.training.reference import ReferenceLogps


@step
def evaluate(
    preferences: Preferences,
    tokens: PairTokens,
    base: Base,
    sft_checkpoint: Checkpoint,
    dpo_checkpoint: Checkpoint | None,
    reference_logps: ReferenceLogps | None,
    sft_tokens: SftTokens | None,
    champion: Champion,
    pair_sets: PairSets | None,
    model: ModelSection,
    evaluation: EvaluationSection,
    generations: Generations,
) -> Annotated[Evaluation, "evaluation"]:
    """Return the figures of base, SFT, DPO and the champion, as far as they exist, on the same test pairs."""
    models = EvaluatedModels(base, model, sft_checkpoint, dpo_checkpoint, champion_checkpoint(champion))
    data = EvaluationData(preferences, tokens, reference_logps, pair_sets, generations, sft_tokens)
    with tracked(nested=False) as run:
        result = library.evaluate(models, data, evaluation)
        log_evaluation(run, result.figures)
    return result
