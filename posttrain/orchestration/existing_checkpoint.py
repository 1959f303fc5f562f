"""SFT checkpoints of earlier runs."""

import contextlib
from pathlib import Path
from typing import Any
from uuid import UUID

from zenml.client import Client
from zenml.models import ArtifactVersionResponse

from posttrain.errors import UserError


def existing_checkpoint(name: str) -> Path | ArtifactVersionResponse:
    """Return the SFT checkpoint that a config names: its folder or artifact version.

    Args:
        name: a folder, the id of an artifact version, or an artifact and its version: `sft_checkpoint:3`, or just `3`.

    Raises:
        UserError: there is no such checkpoint.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    artifact, _, version = name.rpartition(":")
    filters: dict[str, Any] = {"artifact": artifact or "sft_checkpoint", "version": version}
    with contextlib.suppress(ValueError):
        filters = {"id": UUID(name)}
    # Not get_artifact_version: inside a pipeline ZenML defers it until the step runs, too late for a clear error.
    found = Client().list_artifact_versions(**filters, data_type="contains:posttrain.models.checkpoint", size=1)
    if not found.items:
        raise UserError(
            f"dpo.sft_checkpoint: {name!r} is neither a folder nor a version of a checkpoint artifact: list them with "
            "`zenml artifact version list --artifact sft_checkpoint`"
        )
    return found.items[0]
