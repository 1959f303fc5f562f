"""What made a model: enough to find it again, and to make it again."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from posttrain.checkpoint import Base


class Lineage(BaseModel):
    """The data, the code, the settings and the parents of a run's models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    """Name of the pipeline run."""
    config: dict[str, Any]
    """The whole `RunConfig`."""
    data: str
    """sha256 of the preference pairs."""
    code: str
    """sha256 of the project's code and its main packages' versions."""
    versions: dict[str, str]
    """Of those packages."""
    base: Base
    models: dict[str, str]
    """Digest of each stage's checkpoint; a stage's parent is the one before it, the first one's is the base."""
