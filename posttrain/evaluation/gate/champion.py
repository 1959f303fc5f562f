"""The model in production, as the gate knows it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Champion(BaseModel):
    """The model in production, identified by its version's metadata. All fields are None if there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str | None = None
    """Digest of its checkpoint."""
    version: str | None = None
    """Its model version in ZenML's registry."""
    artifact: str | None = None
    """Id of the artifact version of its checkpoint."""
