"""Evaluate the models on the held-out pairs."""

from typing import Annotated

from zenml.client import Client

from posttrain.chat.tokens import PairTokens
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.pair_sets import PairSets
from posttrain.data.preferences import Preferences
from posttrain.errors import UserError
from posttrain.evaluation import scoring as library
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.gate.decision import Champion
from posttrain.evaluation.generations import Generations
from posttrain.evaluation.scoring import Evaluation, EvaluationData
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.running_step.run_figures import log_evaluation
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.orchestration.running_step.stored_files import DamagedArtifact
from posttrain.training.reference import ReferenceLogps


@step
def evaluate(
    preferences: Preferences,
    tokens: PairTokens,
    base: Base,
    sft_checkpoint: Checkpoint,
    dpo_checkpoint: Checkpoint | None,
    reference_logps: ReferenceLogps | None,
    champion: Champion,
    pair_sets: PairSets | None,
    model: ModelSection,
    evaluation: EvaluationSection,
    generations: Generations,
) -> Annotated[Evaluation, "evaluation"]:
    """Return the figures of base, SFT, DPO and the champion, as far as they exist, on the same test pairs."""
    models = EvaluatedModels(base, model, sft_checkpoint, dpo_checkpoint, _checkpoint(champion))
    data = EvaluationData(preferences, tokens, reference_logps, pair_sets, generations)
    with tracked(nested=False) as run:
        result = library.evaluate(models, data, evaluation)
        log_evaluation(run, result.figures)
    return result


def _checkpoint(champion: Champion) -> Checkpoint | None:
    """Return the champion's checkpoint from its artifact."""
    if champion.artifact is None:
        return None
    try:
        checkpoint = Client().get_artifact_version(champion.artifact).load()
    except KeyError as error:
        raise UserError(
            f"the champion, version {champion.version}, cannot be compared with, because its checkpoint, artifact version "
            f"{champion.artifact}, was deleted: take that version out of production"
        ) from error
    except DamagedArtifact as error:  # no run of this config makes it again
        raise UserError(
            f"the champion, version {champion.version}, cannot be compared with. {error}. Or take that version out of production: "
            f"`zenml model version update MODEL {champion.version} --stage archived --force`"
        ) from error
    assert isinstance(checkpoint, Checkpoint)
    return checkpoint
