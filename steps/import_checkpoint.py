"""Import an SFT checkpoint from a folder."""

from pathlib import Path
from typing import Annotated

from posttrain.models.checkpoint import Checkpoint
from posttrain.orchestration.running_step.step import step


@step(enable_cache=False)
def import_checkpoint(folder: str) -> Annotated[Checkpoint, "sft_checkpoint"]:
    """Return the checkpoint in a folder as an artifact. Never cached: the folder may have changed."""
    return Checkpoint.load(Path(folder))
