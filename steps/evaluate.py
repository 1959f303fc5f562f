"""The verdict on the held-out pairs."""

from typing import Annotated

from zenml.client import Client

from posttrain.config import EvaluationSection, Lengths, ModelSection
from posttrain.data.pair_sets import PairSets
from posttrain.data.preferences import Preferences
from posttrain.errors import UserError
from posttrain.evaluation import scoring as library
from posttrain.evaluation.gate import Champion
from posttrain.evaluation.generations import Generations
from posttrain.evaluation.scoring import Evaluation
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.run_figures import log_evaluation
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracked
from posttrain.training.reference import ReferenceLogps


@step
def evaluate(
    preferences: Preferences,
    base: Base,
    sft_checkpoint: Checkpoint,
    dpo_checkpoint: Checkpoint | None,
    reference_logps: ReferenceLogps | None,
    champion: Champion,
    pair_sets: PairSets | None,
    model: ModelSection,
    lengths: Lengths,
    evaluation: EvaluationSection,
    generations: Generations,
) -> Annotated[Evaluation, "evaluation"]:
    """Base, SFT and, where there are such, DPO and the champion on the same test pairs."""
    with tracked(nested=False) as run:
        result = library.evaluate(
            preferences,
            base,
            sft_checkpoint,
            dpo_checkpoint,
            reference_logps,
            model,
            lengths,
            evaluation,
            generations=generations,
            champion=_checkpoint(champion),
            sets=pair_sets,
        )
        log_evaluation(run, result.figures)
    return result


def _checkpoint(champion: Champion) -> Checkpoint | None:
    """The champion's checkpoint, from the artifact that holds it."""
    if champion.artifact is None:
        return None
    try:
        checkpoint = Client().get_artifact_version(champion.artifact).load()
    except KeyError as error:
        raise UserError(
            f"the champion, version {champion.version}, cannot be held against: its checkpoint, artifact version "
            f"{champion.artifact}, was deleted: take that version out of production"
        ) from error
    assert isinstance(checkpoint, Checkpoint)
    return checkpoint
