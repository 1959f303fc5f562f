"""The checkpoint of the model in production."""

from __future__ import annotations

from zenml.client import Client

from posttrain.errors import UserError
from posttrain.evaluation.gate.champion import Champion
from posttrain.models.checkpoint import Checkpoint
from posttrain.orchestration.running_step.stored_files import DamagedArtifact


def champion_checkpoint(champion: Champion) -> Checkpoint | None:
    """Return the champion's checkpoint from its artifact; None if there is no champion.

    Raises:
        UserError: the artifact was deleted.
    """
    if champion.artifact is None:
        return None
    try:
        checkpoint = Client().get_artifact_version(champion.artifact).load()
    except KeyError as error:
        raise UserError(
            f"the champion, version {champion.version}, cannot be compared with, because its checkpoint, artifact version "
            f"{champion.artifact}, was deleted: take that version out of production"
        ) from error
    except DamagedArtifact as error:  # no run of this config makes it again
        raise UserError(
            f"the champion, version {champion.version}, cannot be compared with. {error}. Or take that version out of production: "
            f"`zenml model version update MODEL {champion.version} --stage archived --force`"
        ) from error
    assert isinstance(checkpoint, Checkpoint)
    return checkpoint
