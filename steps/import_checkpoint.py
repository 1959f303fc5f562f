"""Import the model that DPO starts from."""

from pathlib import Path
from typing import Annotated

from posttrain.config import ModelSection
from posttrain.models.base_checkpoint import base_checkpoint
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.workspace import workspace


@step(enable_cache=False)
def import_checkpoint(folder: str | None, base: Base, model: ModelSection) -> Annotated[Checkpoint, "sft_checkpoint"]:
    """Return the checkpoint in a folder or, without one, the base itself as an artifact. Never cached: it may have changed."""
    return Checkpoint.load(Path(folder)) if folder else base_checkpoint(base, model, workspace())
