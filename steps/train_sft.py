"""Train with supervised fine-tuning."""

from typing import Annotated

from posttrain.chat.tokens import SftTokens
from posttrain.config import ModelSection, SftSection
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracked
from posttrain.orchestration.step_training import training_stage
from posttrain.training import sft as library


@step
def train_sft(
    sft_tokens: SftTokens, base: Base, model: ModelSection, sft: SftSection, seed: int
) -> Annotated[Checkpoint, "sft_checkpoint"]:
    """Return the base after training on the instructions or, if there are none, on the chosen responses."""
    with tracked(nested=True) as run:
        job = training_stage(run, base, model, sft, seed, sft_tokens.digest)
        checkpoint = library.train_sft(sft_tokens, sft, job)
        run.set_tags({"batches": checkpoint.manifest.batches})
    return checkpoint
