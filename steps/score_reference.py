"""What DPO is measured against."""

from typing import Annotated

from zenml.client import Client

from posttrain.config import Lengths, ModelSection
from posttrain.data.preferences import Preferences
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.step import step
from posttrain.training import reference as library
from posttrain.training.reference import ReferenceLogps


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
    return library.score_reference(preferences, sft_checkpoint, base, model, lengths, tokens_per_batch, find=_stored)


def _stored(key: str) -> ReferenceLogps | None:
    """What any earlier run has stored under a key. ZenML's own cache depends on where the inputs come from, this does not."""
    found = Client().list_artifact_versions(
        artifact="reference_logps", run_metadata=f"key:{key}", sort_by="desc:created", size=1
    )
    for version in found.items:
        try:
            stored: ReferenceLogps = version.load()
        except OSError as error:
            print(f"Reference: version {version.version} cannot be read ({error}), so it is scored again")
        else:
            return stored
    return None
