"""Score every pair with the reference, which DPO is measured against."""

from typing import Annotated

from zenml.client import Client

from posttrain.chat.tokens import PairTokens
from posttrain.config import ModelSection
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.stored_files import DamagedArtifact
from posttrain.training import reference as library
from posttrain.training.reference import ReferenceLogps, ReferencePolicy


@step
def score_reference(
    tokens: PairTokens, sft_checkpoint: Checkpoint, base: Base, model: ModelSection, tokens_per_batch: int
) -> Annotated[ReferenceLogps, "reference_logps"]:
    """Return the log-probabilities of every pair under the SFT checkpoint. Of DPO's settings, only the lengths matter."""
    policy = ReferencePolicy(sft_checkpoint, base, model)
    return library.score_reference(tokens, policy, tokens_per_batch, find=_stored)


def _stored(key: str) -> ReferenceLogps | None:
    """Return what an earlier run stored under a key. Unlike ZenML's cache, this does not depend on where inputs come from."""
    found = Client().list_artifact_versions(
        artifact="reference_logps", run_metadata=f"key:{key}", sort_by="desc:created", size=1
    )
    for version in found.items:
        try:
            stored: ReferenceLogps = version.load()
        except (OSError, DamagedArtifact) as error:
            print(f"Reference: version {version.version} cannot be read ({error}), so the pairs are scored again")
        else:
            return stored
    return None
