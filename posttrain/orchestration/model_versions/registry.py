"""The model registries: ZenML's, which decides which model is in production, and MLflow's, which follows it.

A ZenML pipeline with `model=` creates a new version in every run, even if every step was cached. Here the step that judges
a model creates its version and names it after the result, so repeated results create no new version.

A promotion is a single write: the stage `production` in ZenML. Everything else is prepared before it or derived from it, so
`reconcile`, which every run calls first, can complete what an interruption or two concurrent runs left behind.

What is known about a judged version is a single metadata value: ZenML commits one value after the other, so a process that is
killed, or a reader at that moment, would find some of several. A version without it is ignored until a run writes it.
"""

import contextlib
import hashlib
import logging
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
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

from posttrain.compat.zenml_internals import link_run_record
from posttrain.errors import UserError
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.gate.rejection import respect
from posttrain.evaluation.verification.verifier_figures import VerifierFigures
from posttrain.orchestration.model_versions.rejections import rejection_of, standing_rejection
from posttrain.tracking import Tracker, reason
from posttrain.tracking.mlflow_registry import ModelRegistry, Registration, registry_error

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
N_KEPT_IN_STEP = 100
"""Number of newest versions that are compared with MLflow's registry."""
MANY = 10_000
"""The largest page that ZenML gives."""
JUDGEMENT = "judgement"
"""Name of the metadata value."""


class JudgedVersion(BaseModel):
    """What is known about a judged version."""

    model_config = ConfigDict(frozen=True)

    promoted: bool
    opponent: str
    reasons: list[str]
    digest: str
    """Digest of its checkpoint."""
    artifact: str
    """Id of the artifact version of its checkpoint."""
    source: str
    """Where the files of its checkpoint are."""
    judged_against: Champion
    experiment: str
    pipeline_run: str
    pipeline_run_name: str


def result_name(figures: Figures | VerifierFigures, gate: dict[str, Any]) -> str:
    """Return the version name of a judged model, such as `dpo-3f9c2a1b07`: the same for the same figures and gate."""
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
    """Artifact version of its checkpoint."""


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
        changed = f"version {champion.name} has become the champion in the meantime: run again to compare with it"
        promotion = promotion.model_copy(update={"promoted": False, "reasons": [*promotion.reasons, changed]})
    promotion = respect(standing_rejection(name, digest), promotion)
    judgement = JudgedVersion(
        **promotion.model_dump(include={"promoted", "opponent", "reasons"}),
        digest=digest,
        artifact=str(candidate.id),
        source=f"{candidate.uri}/files",
        judged_against=opponent,
        experiment=tracker.experiment,
        pipeline_run=str(run.id),
        pipeline_run_name=run.name,
    )
    if not rejection_of(version):  # that it was promoted once is part of its history
        log_metadata(metadata={JUDGEMENT: judgement.model_dump(exclude_none=True)}, model_version_id=version.id)
    if promotion.promoted:
        version.set_stage(ModelStages.PRODUCTION, force=True)
    reconcile(name, tracker.uri)
    return promotion


def standing_champion(name: str, candidate_digest: str) -> Champion:
    """Return the champion that a candidate is compared with.

    A candidate that is the champion itself is compared with the champion that it replaced, so repeating a run after its
    promotion changes nothing.

    Raises:
        UserError: the model in production is not from this pipeline.
    """
    champion = sole_champion(name)
    if champion is None:
        return Champion()
    judgement = judgement_of(champion)
    if judgement is None:
        raise UserError(
            f"version {champion.name} of model {name} is in production, but this pipeline did not promote it, so it has no "
            f"checkpoint to compare with. Archive it: `zenml model version update {name} {champion.name} --stage archived --force`"
        )
    if judgement.digest == candidate_digest:
        return judgement.judged_against
    return Champion(digest=judgement.digest, version=champion.name, artifact=judgement.artifact)


def sole_champion(name: str) -> ModelVersionResponse | None:
    """Return the version in production.

    If concurrent promotions left two there, all but the latest are archived. A rollback that was interrupted is completed.
    """
    standing = versions_of(name, stage=ModelStages.PRODUCTION)
    for other in standing[1:]:
        other.set_stage(ModelStages.ARCHIVED, force=True)
    if not standing:
        return None
    rejection = rejection_of(standing[0])
    if rejection is None or rejection.successor is None:
        return standing[0]
    logger.warning(
        "%s: version %s is in production, but was taken out at %s: its successor %s goes back into production. To change this: "
        "`posttrain rollback`", name, rejection.version, rejection.at, rejection.successor,
    )  # fmt: skip
    successor = Client().get_model_version(name, rejection.successor)
    successor.set_stage(ModelStages.PRODUCTION, force=True)
    return Client().get_model_version(name, rejection.successor)


def judgement_of(version: ModelVersionResponse) -> JudgedVersion | None:
    """Return what is known about a version; None if it was created by hand, or its run was killed before it wrote this.

    Versions of older releases have one metadata value for each field.
    """
    metadata = version.run_metadata
    try:
        return JudgedVersion.model_validate(metadata.get(JUDGEMENT, metadata))
    except ValidationError:
        return None


def judgements_of_all_models() -> list[list[JudgedVersion]]:
    """Return what is known about all versions of each model, newest first."""
    client = Client()
    of_models = []
    for model in client.list_models(size=MANY).items:
        versions = client.list_model_versions(model=model.id, sort_by="desc:number", size=MANY, hydrate=True).items
        of_models.append([judgement for version in versions if (judgement := judgement_of(version))])
    return of_models


def digest_of(version: ModelVersionResponse) -> str | None:
    """Return the digest of a version's checkpoint; None if nothing is known about the version."""
    judgement = judgement_of(version)
    return judgement.digest if judgement else None


def reconcile(name: str, uri: str) -> None:
    """Bring MLflow's registry in line with ZenML's; if MLflow does not answer, the next run does it.

    Every judged version is registered. `champion` is the version in production, `challenger` the newest version refused
    since then. Each registry links to the other.
    """
    try:
        registry = ModelRegistry(uri, name)
        numbers = registry.numbers()
        for version, judgement in reversed(_judged(name)):
            number = numbers.get(str(version.name)) or registry.register(_registration(name, version, judgement))
            if version.run_metadata.get("mlflow_version") != number:
                link = {"mlflow_version": number, "mlflow_model": registry.link(number)}
                log_metadata(metadata={**link}, model_version_id=version.id)
        written = None
        while (
            aliases := _aliases(name, registry.numbers())
        ) != written:  # repeated if another promotion happened in between
            for alias, target in aliases.items():
                registry.set_alias(alias, target)
            written = aliases
    except registry_error() as error:
        logger.warning("MLflow's registry of %s is out of date: %s. The next run updates it.", name, reason(error))


def _aliases(name: str, numbers: dict[str, str]) -> dict[str, str | None]:
    """Return the MLflow version number for each alias, according to ZenML."""
    champion, judged = sole_champion(name), _judged(name)
    since = champion.number if champion else 0
    refused = [version for version, judgement in judged if version.number > since and not judgement.promoted]
    return {
        CHAMPION: numbers.get(str(champion.name)) if champion else None,
        CHALLENGER: numbers.get(str(refused[0].name)) if refused else None,
    }


def _registration(name: str, version: ModelVersionResponse, judgement: JudgedVersion) -> Registration:
    return Registration(
        version=str(version.name),
        source=judgement.source,
        tags={
            "zenml.model": name,
            "zenml.model_version_id": str(version.id),
            "zenml.pipeline_run": judgement.pipeline_run_name,
            "posttrain.digest": judgement.digest,
            "promoted": str(judgement.promoted).lower(),
        },
        description="; ".join(judgement.reasons),
        experiment=judgement.experiment,
        pipeline_run=judgement.pipeline_run,
    )


def _judged(name: str) -> list[tuple[ModelVersionResponse, JudgedVersion]]:
    """Return the versions that this pipeline has judged among the last `N_KEPT_IN_STEP`, newest first."""
    found = ((version, judgement_of(version)) for version in versions_of(name))
    return [(version, judgement) for version, judgement in found if judgement]


def versions_of(name: str, size: int = N_KEPT_IN_STEP, **filters: Any) -> list[ModelVersionResponse]:
    """Return versions of a model, newest first; none if the model does not exist."""
    try:
        found = Client().list_model_versions(model=name, sort_by="desc:number", size=size, hydrate=True, **filters)
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
    """Link a version to a run and to all artifacts that the run made or reused."""
    client = Client()
    for artifact in get_artifacts_versions_of_pipeline_run(client.get_pipeline_run(run.id)):
        link_artifact_version_to_model_version(artifact, version)
    link_run_record(client, ModelVersionPipelineRunRequest(model_version=version.id, pipeline_run=run.id))
