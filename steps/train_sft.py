"""Supervised fine-tuning."""

from typing import Annotated

from posttrain import sft as library
from posttrain.checkpoint import Base, Checkpoint
from posttrain.config import ModelSection, SftSection
from posttrain.data.preferences import Instructions, Preferences
from posttrain.tracking import metrics_callback
from posttrain.training import Stage
from steps._step import step
from steps._tracking import tracked
from steps._workspace import workspace


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
        stage = Stage(base, model, seed, workspace(), callbacks=(metrics_callback(run),))
        checkpoint = library.train_sft(preferences, instructions, sft, stage)
        run.set_tags({"batches": checkpoint.manifest.batches})
    return checkpoint
