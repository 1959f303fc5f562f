"""Direct preference optimisation."""

from typing import Annotated

from posttrain import dpo as library
from posttrain.checkpoint import Base, Checkpoint
from posttrain.config import DpoSection, ModelSection
from posttrain.reference import ReferenceLogps
from posttrain.tracking import metrics_callback
from posttrain.training import Stage
from steps._step import step
from steps._tracking import tracked
from steps._workspace import workspace


@step
def train_dpo(
    reference_logps: ReferenceLogps,
    sft_checkpoint: Checkpoint,
    base: Base,
    model: ModelSection,
    dpo: DpoSection,
    seed: int,
) -> Annotated[Checkpoint, "dpo_checkpoint"]:
    """The SFT policy after learning to prefer, held near where it started."""
    with tracked(nested=True) as run:
        stage = Stage(base, model, seed, workspace(), callbacks=(metrics_callback(run),))
        checkpoint = library.train_dpo(reference_logps, sft_checkpoint, dpo, stage)
        run.set_tags({"batches": checkpoint.manifest.batches})
    return checkpoint
