"""The decision of a person that a model must not be in production."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from posttrain.evaluation.gate.decision import Promotion


class Rejection(BaseModel):
    """A version that was taken out of production. All fields are None if the model was not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    """Name of the model in the registry."""
    version: str | None = None
    """The model version that was in production."""
    digest: str | None = None
    """Digest of its checkpoint; None if it is unknown, because the version was created by hand."""
    reason: str | None = None
    at: str | None = None
    """Time in UTC."""
    successor: str | None = None
    """The version that replaced it."""


def respect(rejection: Rejection, promotion: Promotion) -> Promotion:
    """Return a decision that does not promote a model which was taken out of production."""
    if rejection.version is None or not promotion.promoted:
        return promotion
    against = (
        f"the same model, version {rejection.version}, was taken out of production at {rejection.at}: {rejection.reason}. To use "
        f"it again: `posttrain rollback {rejection.model} {rejection.version} --reason ...`"
    )
    return promotion.model_copy(update={"promoted": False, "reasons": [*promotion.reasons, against]})
