"""What DPO is measured against."""

from typing import Annotated

from zenml import step

from posttrain import reference as library
from posttrain.checkpoint import Base, Checkpoint
from posttrain.config import ModelSection
from posttrain.data.preferences import Preferences
from posttrain.reference import Lengths, ReferenceLogps


@step
def score_reference(
    preferences: Preferences,
    sft_checkpoint: Checkpoint,
    base: Base,
    model: ModelSection,
    lengths: Lengths,
    tokens_per_batch: int,
) -> Annotated[ReferenceLogps, "reference_logps"]:
    """Log-probabilities of every pair under the SFT checkpoint; takes no DPO setting that it does not depend on."""
    return library.score_reference(preferences, sft_checkpoint, base, model, lengths, tokens_per_batch)
