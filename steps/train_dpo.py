"""Train with direct preference optimisation."""

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
    """Return the SFT policy after preference optimisation."""
    with tracked(nested=True) as run:
        job = training_stage(run, base, model, dpo, seed, reference_logps.key, sft_checkpoint.digest)
        checkpoint = library.train_dpo(reference_logps, sft_checkpoint, dpo, job)
        run.set_tags({"batches": checkpoint.manifest.batches})
    return checkpoint
