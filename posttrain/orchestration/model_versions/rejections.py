"""The record of versions that were taken out of production: one metadata value of the version, which ZenML writes at once."""

from __future__ import annotations

from pydantic import ValidationError
from zenml import log_metadata
from zenml.client import Client
from zenml.models import ModelVersionResponse

from posttrain.evaluation.gate.rejection import Rejection

REJECTION, LIFTED = "rejection", "lifted"
MANY = 10_000
"""The largest page that ZenML gives."""


def rejection_of(version: ModelVersionResponse) -> Rejection | None:
    """Return why a version was taken out of production; None if it was not, or is allowed again."""
    try:
        return Rejection.model_validate(version.run_metadata.get(REJECTION))
    except ValidationError:
        return None


def standing_rejection(name: str, digest: str) -> Rejection:
    """Return the rejection of a checkpoint under any version of a model; an empty one if there is none."""
    try:
        versions = Client().list_model_versions(model=name, sort_by="desc:number", size=MANY, hydrate=True).items
    except KeyError:  # no such model yet
        return Rejection()
    found = (rejection for version in versions if (rejection := rejection_of(version)))
    return next((rejection for rejection in found if rejection.digest == digest), Rejection())


def reject(version: ModelVersionResponse, rejection: Rejection) -> None:
    """Record that a version was taken out of production."""
    log_metadata(metadata={REJECTION: rejection.model_dump(exclude_none=True)}, model_version_id=version.id)


def lift(version: ModelVersionResponse, reason: str) -> None:
    """Record that a version may be in production again; what was recorded stays for the history."""
    earlier = rejection_of(version)
    before = earlier.model_dump(exclude_none=True) if earlier else {}
    log_metadata(metadata={REJECTION: {**before, LIFTED: reason}}, model_version_id=version.id)
