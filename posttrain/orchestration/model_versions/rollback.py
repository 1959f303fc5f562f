"""Take the model in production back to an earlier version.

First the rejection is recorded, with its successor, then the stage changes: a process that is killed in between leaves a rejected
version in production, and the next run or rollback completes it (`sole_champion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from zenml.client import Client
from zenml.enums import ModelStages
from zenml.models import ModelVersionResponse

from posttrain.errors import UserError
from posttrain.evaluation.gate.rejection import Rejection
from posttrain.orchestration.model_versions.registry import (
    MANY,
    digest_of,
    judgement_of,
    reconcile,
    sole_champion,
    versions_of,
)
from posttrain.orchestration.model_versions.rejections import lift, reject, rejection_of
from posttrain.orchestration.running_step.step_tracking import tracking_uri
from posttrain.orchestration.running_step.stored_files import check_present


@dataclass(frozen=True)
class Rollback:
    """The change of the model in production."""

    rejected: str | None
    """Name of the version that was in production; None if there was none."""
    standing: str
    """Name of the version that is in production now."""


def roll_back(name: str, version: str | None, reason: str) -> Rollback:
    """Put an earlier version into production, in both registries, and reject the one that is there.

    Args:
        name: of the model.
        version: name or number; None for the version that the one in production replaced.
        reason: why, for the history.

    Raises:
        UserError: there is nothing to go back to, or the version does not exist, was never promoted, or has lost its files.
    """
    versions = versions_of(name, size=MANY)
    if not versions:
        known = ", ".join(
            model.name for model in Client().list_models(size=50).items if not model.name.endswith("-looks")
        )
        raise UserError(f"{name}: no such model, or it has no versions (models: {known or 'none'})")
    current = sole_champion(name)
    target = _previous(name, current, versions) if version is None else _named(name, version, versions)
    _check_usable(name, target)
    if current and digest_of(current) == digest_of(target):
        raise UserError(
            f"version {target.name} of model {name} is the model in production already: name another version"
        )
    for other in versions:
        if rejection_of(other) and digest_of(other) == digest_of(target):
            lift(other, reason)
    if current:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        of_current: dict[str, Any] = {"model": name, "version": str(current.name), "digest": digest_of(current)}
        reject(current, Rejection(**of_current, reason=reason, at=now, successor=str(target.name)))
    target.set_stage(ModelStages.PRODUCTION, force=True)
    reconcile(name, tracking_uri())
    return Rollback(str(current.name) if current else None, str(target.name))


def _named(name: str, version: str, versions: list[ModelVersionResponse]) -> ModelVersionResponse:
    wanted = version.removeprefix(f"{name}:")
    for found in versions:
        if wanted in (str(found.name), str(found.number)):
            return found
    raise UserError(f"{version}: model {name} has no such version: it has {_promoted_names(versions)}")


def _previous(
    name: str, current: ModelVersionResponse | None, versions: list[ModelVersionResponse]
) -> ModelVersionResponse:
    """Return the version that the one in production replaced, or else the newest promoted one before it, unless rejected."""
    if current is None:
        raise UserError(
            f"model {name} has no version in production: name the version to put there ({_promoted_names(versions)})"
        )
    judgement = judgement_of(current)
    replaced = judgement.judged_against.version if judgement else None
    earlier = [found for found in versions if found.number < current.number and _was_promoted(found)]
    earlier.sort(key=lambda found: found.name != replaced)
    for found in earlier:
        if not rejection_of(found) and digest_of(found) != digest_of(current):
            return found
    raise UserError(
        f"model {name} has nothing to go back to: no version before {current.name} was promoted and not rejected since. To take "
        f"it out of production without a successor: `zenml model version update {name} {current.name} --stage archived --force`"
    )


def _check_usable(name: str, target: ModelVersionResponse) -> None:
    """Check that a version was promoted once, and that its files are there."""
    judgement = judgement_of(target)
    if judgement is None or not judgement.promoted:
        why = judgement.reasons[-1] if judgement else "this pipeline did not judge it"
        raise UserError(f"version {target.name} of model {name} was never promoted ({why}): name one that was")
    try:
        artifact = Client().get_artifact_version(judgement.artifact)
    except KeyError as error:
        raise UserError(
            f"version {target.name} of model {name}: its checkpoint was deleted: name another version"
        ) from error
    check_present(artifact)


def _was_promoted(version: ModelVersionResponse) -> bool:
    judgement = judgement_of(version)
    return judgement is not None and judgement.promoted


def _promoted_names(versions: list[ModelVersionResponse]) -> str:
    names = [f"{found.name} ({found.number})" for found in versions if _was_promoted(found)]
    return f"promoted versions: {', '.join(names[:10])}" if names else "no version that was promoted"
