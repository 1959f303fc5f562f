"""What the models answer to test prompts."""

from typing import Annotated

from posttrain.config import EvaluationSection, Lengths, ModelSection
from posttrain.data.preferences import Preferences
from posttrain.evaluation import generations as library
from posttrain.evaluation.generations import Generations
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.run_figures import log_generations
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracked


@step
def generate(
    preferences: Preferences,
    base: Base,
    sft_checkpoint: Checkpoint,
    dpo_checkpoint: Checkpoint | None,
    model: ModelSection,
    lengths: Lengths,
    evaluation: EvaluationSection,
) -> Annotated[Generations, "generations"]:
    """SFT's and, where there is one, DPO's answers to the same prompts."""
    checkpoints = {"sft": sft_checkpoint} | ({"dpo": dpo_checkpoint} if dpo_checkpoint else {})
    with tracked(nested=False) as run:
        generations = library.generate(preferences, base, checkpoints, model, lengths, evaluation)
        log_generations(run, generations)
    return generations
