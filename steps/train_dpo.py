"""Direct preference optimisation."""

from typing import Annotated

from posttrain.config import DpoSection, ModelSection
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracked
from posttrain.orchestration.step_training import training_stage
from posttrain.training import dpo as library
from posttrain.training.reference import ReferenceLogps


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
        stage = training_stage(run, base, model, dpo, seed, reference_logps.key, sft_checkpoint.digest)
        checkpoint = library.train_dpo(reference_logps, sft_checkpoint, dpo, stage)
        run.set_tags({"batches": checkpoint.manifest.batches})
    return checkpoint
