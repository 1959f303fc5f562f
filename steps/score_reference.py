"""Score every pair with the reference, which DPO is measured against."""

from collections.abc import Iterator
from typing import Annotated, Literal

from zenml.client import Client

from posttrain.chat.tokens import PairTokens
from posttrain.config import ModelSection, Passes
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.stored_files import DamagedArtifact
from posttrain.training import reference as library
from posttrain.training.reference import ReferenceLogps, ReferencePolicy, TrainedOn

N_EARLIER = 20
"""Largest number of earlier references that are read to look for scored pairs."""


@step
def score_reference(
    tokens: PairTokens,
    sft_checkpoint: Checkpoint,
    base: Base,
    model: ModelSection,
    tokens_per_batch: int,
    processes: int | Literal["auto"],
    passes: list[Passes],
    seed: int,
) -> Annotated[ReferenceLogps, "reference_logps"]:
    """Return the log-probabilities of the pairs that DPO reads, and of all held-out pairs, under the SFT checkpoint.

    Of DPO's settings, only the lengths, the number of steps and the order of the pairs matter.
    """
    policy = ReferencePolicy(sft_checkpoint, base, model, processes)
    return library.score_reference(tokens, policy, tokens_per_batch, TrainedOn(passes, seed), find=_stored)


def _stored(policy: str) -> Iterator[ReferenceLogps]:
    """Yield what earlier runs stored for a policy. Unlike ZenML's cache, this does not depend on where inputs come from."""
    found = Client().list_artifact_versions(
        artifact="reference_logps", run_metadata=f"policy:{policy}", sort_by="desc:created", size=N_EARLIER
    )
    for version in found.items:
        try:
            stored: ReferenceLogps = version.load()
        except (OSError, DamagedArtifact) as error:
            print(f"Reference: version {version.version} cannot be read ({error}), so its pairs are not reused")
        else:
            yield stored
