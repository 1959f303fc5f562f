"""The model registries: ZenML's, which decides what is in production, and MLflow's, which follows it.

A ZenML pipeline with `model=` gets a new version in every run, also where everything came from the cache. Here the step
that judges a model makes its version, named after the result, so there is one for each result and none for a repetition.

Promotion is one write: the stage `production` in ZenML. Before it all is prepared, after it all can be derived: so work
that was interrupted, or done by two at once, is put in order by `reconcile`, which every run calls first.
"""

import contextlib
import hashlib
import logging
from dataclasses import dataclass
from typing import Any

from zenml import log_metadata
from zenml.artifacts.utils import get_artifacts_versions_of_pipeline_run
from zenml.client import Client
from zenml.enums import ModelStages
from zenml.exceptions import EntityExistsError
from zenml.model.utils import link_artifact_version_to_model_version
from zenml.models import (
    ArtifactVersionResponse,
    ModelVersionPipelineRunRequest,
    ModelVersionResponse,
    PipelineRunResponse,
)

from posttrain.errors import UserError
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate import Champion, Promotion
from posttrain.tracking import Tracker, reason
from posttrain.tracking.mlflow_registry import ModelRegistry, Registration, registry_error

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
N_KEPT_IN_STEP = 100
"""Versions that MLflow's registry is compared in: the newest."""


def result_name(figures: Figures, gate: dict[str, Any]) -> str:
    """What the version of a judged model is called, e.g. `dpo-3f9c2a1b07`: the same for the same figures and gate."""
    digest = hashlib.sha256(f"{figures.model_dump_json()} {sorted(gate.items())}".encode()).hexdigest()
    return f"{figures.newest}-{digest[:10]}"


@dataclass(frozen=True)
class JudgedModel:
    """A model that the gate has decided on."""

    name: str
    version: str
    """As `result_name` gives it."""
    promotion: Promotion
    opponent: Champion
    """The champion that it was judged against."""
    candidate: ArtifactVersionResponse
    """The artifact that holds its checkpoint."""


def settle(judged: JudgedModel, run: PipelineRunResponse, tracker: Tracker) -> Promotion:
    """Register a judged model, make it the champion if it was promoted, and return the final decision.

    A version that exists already is completed, not made again.

    Args:
        run: the pipeline run that judged the model.
        tracker: the run in MLflow.
    """
    name, promotion, opponent, candidate = judged.name, judged.promotion, judged.opponent, judged.candidate
    version = _version(name, judged.version)
    _link_run(version, run)
    digest = str(candidate.run_metadata["digest"])
    champion = sole_champion(name)
    if promotion.promoted and champion and digest_of(champion) not in (opponent.digest, digest):
        changed = f"version {champion.name} has become the champion meanwhile: run again, to be held against it"
        promotion = promotion.model_copy(update={"promoted": False, "reasons": [*promotion.reasons, changed]})
    metadata = {
        **promotion.model_dump(),
        "digest": digest,
        "artifact": str(candidate.id),
        "source": f"{candidate.uri}/files",
        "judged_against": opponent.model_dump(exclude_none=True),
        "experiment": tracker.experiment,
        "pipeline_run": str(run.id),
        "pipeline_run_name": run.name,
    }
    log_metadata(metadata, model_version_id=version.id)
    if promotion.promoted:
        version.set_stage(ModelStages.PRODUCTION, force=True)
    reconcile(name, tracker.uri)
    return promotion


def standing_champion(name: str, candidate_digest: str) -> Champion:
    """The champion that a candidate is to be held against.

    A candidate that is the champion itself is held against the one that it was promoted over: so a run that is repeated
    after its promotion finds all as it was, and nothing is done again.

    Raises:
        UserError: what is in production is not a model of this pipeline.
    """
    champion = sole_champion(name)
    if champion is None:
        return Champion()
    digest = digest_of(champion)
    if digest is None:
        raise UserError(
            f"version {champion.name} of model {name} is in production, but was not put there by this pipeline and names no "
            f"checkpoint to be held against: `zenml model version update {name} {champion.name} --stage archived --force`"
        )
    if digest == candidate_digest:
        return Champion.model_validate(champion.run_metadata["judged_against"])
    return Champion(digest=digest, version=champion.name, artifact=str(champion.run_metadata["artifact"]))


def sole_champion(name: str) -> ModelVersionResponse | None:
    """The version in production. Where two promotions at once have left two there, the later version stays."""
    standing = _versions(name, stage=ModelStages.PRODUCTION)
    for other in standing[1:]:
        other.set_stage(ModelStages.ARCHIVED, force=True)
    return standing[0] if standing else None


def digest_of(version: ModelVersionResponse) -> str | None:
    """Of the checkpoint of a version; None where a person made the version."""
    digest = version.run_metadata.get("digest")
    return None if digest is None else str(digest)


def reconcile(name: str, uri: str) -> None:
    """Makes MLflow's registry say what ZenML's says; without MLflow it waits for the next run.

    Every judged version is registered, `champion` is the one in production, `challenger` the newest one that was refused
    since, and each side has a link to the other.
    """
    try:
        registry = ModelRegistry(uri, name)
        numbers = registry.numbers()
        for version in reversed(_judged(name)):
            number = numbers.get(version.name) or registry.register(_registration(name, version))
            if version.run_metadata.get("mlflow_version") != number:
                link = {"mlflow_version": number, "mlflow_model": registry.link(number)}
                log_metadata(link, model_version_id=version.id)
        written = None
        while (aliases := _aliases(name, registry.numbers())) != written:  # again, if another promotion came in between
            for alias, target in aliases.items():
                registry.set_alias(alias, target)
            written = aliases
    except registry_error() as error:
        logger.warning("MLflow's registry of %s is behind: %s. The next run brings it up to date.", name, reason(error))


def _aliases(name: str, numbers: dict[str, str]) -> dict[str, str | None]:
    """The number in MLflow that each alias must point to, by what ZenML says now."""
    champion, judged = sole_champion(name), _judged(name)
    since = champion.number if champion else 0
    refused = [v for v in judged if v.number > since and v.run_metadata["promoted"] is False]
    return {
        CHAMPION: numbers.get(champion.name) if champion else None,
        CHALLENGER: numbers.get(refused[0].name) if refused else None,
    }


def _registration(name: str, version: ModelVersionResponse) -> Registration:
    about = version.run_metadata
    return Registration(
        version=version.name,
        source=str(about["source"]),
        tags={
            "zenml.model": name,
            "zenml.model_version_id": str(version.id),
            "zenml.pipeline_run": str(about["pipeline_run_name"]),
            "posttrain.digest": str(about["digest"]),
            "promoted": str(about["promoted"]).lower(),
        },
        description="; ".join(about["reasons"]),
        experiment=str(about["experiment"]),
        pipeline_run=str(about["pipeline_run"]),
    )


def _judged(name: str) -> list[ModelVersionResponse]:
    """The versions that this pipeline has judged, newest first, of the last `N_KEPT_IN_STEP`."""
    return [version for version in _versions(name) if digest_of(version) is not None]


def _versions(name: str, **filters: Any) -> list[ModelVersionResponse]:
    """Newest first; none where the model is not known yet."""
    try:
        found = Client().list_model_versions(
            model=name, sort_by="desc:number", size=N_KEPT_IN_STEP, hydrate=True, **filters
        )
    except KeyError:
        return []
    return list(found.items)


def _version(name: str, version_name: str) -> ModelVersionResponse:
    client = Client()
    with contextlib.suppress(EntityExistsError):
        client.create_model(name)
    with contextlib.suppress(EntityExistsError):
        client.create_model_version(name, version_name)
    return client.get_model_version(name, version_name)


def _link_run(version: ModelVersionResponse, run: PipelineRunResponse) -> None:
    """Links a version to a run and to all that the run has made or reused."""
    client = Client()
    for artifact in get_artifacts_versions_of_pipeline_run(client.get_pipeline_run(run.id)):
        link_artifact_version_to_model_version(artifact, version)
    client.zen_store.create_model_version_pipeline_run_link(
        ModelVersionPipelineRunRequest(model_version=version.id, pipeline_run=run.id)
    )
