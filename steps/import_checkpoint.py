"""An SFT checkpoint that lies in a folder."""

from pathlib import Path
from typing import Annotated

from posttrain.models.checkpoint import Checkpoint
from posttrain.orchestration.step import step


@step(enable_cache=False)
def import_checkpoint(folder: str) -> Annotated[Checkpoint, "sft_checkpoint"]:
    """The checkpoint in a folder, as an artifact. Always read again: the folder may have changed."""
    return Checkpoint.load(Path(folder))
