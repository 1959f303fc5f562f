"""Supervised fine-tuning."""

from typing import Annotated

from posttrain.config import ModelSection, SftSection
from posttrain.data.preferences import Instructions, Preferences
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracked
from posttrain.orchestration.step_training import training_stage
from posttrain.training import sft as library


@step
def train_sft(
    preferences: Preferences,
    instructions: Instructions | None,
    base: Base,
    model: ModelSection,
    sft: SftSection,
    seed: int,
) -> Annotated[Checkpoint, "sft_checkpoint"]:
    """The base after learning the instructions, or the chosen responses where there are none."""
    with tracked(nested=True) as run:
        stage = training_stage(
            run, base, model, sft, seed, preferences.digest, instructions.digest if instructions else ""
        )
        checkpoint = library.train_sft(preferences, instructions, sft, stage)
        run.set_tags({"batches": checkpoint.manifest.batches})
    return checkpoint
