"""Find models of earlier runs by name."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from zenml.client import Client
from zenml.enums import ModelStages
from zenml.models import ArtifactVersionResponse, ModelVersionResponse

from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.models.checkpoint import Checkpoint
from posttrain.orchestration.finished_runs import find_run, first_run, output
from posttrain.reporting.run_report import RunReport

CHECKPOINT = "contains:posttrain.models.checkpoint"
REMEDY = (
    "name a folder, a version of a model (`demo:3`, `demo:production`), or of a checkpoint (`dpo_checkpoint:3`): list them with "
    "`zenml model version list` and `zenml artifact version list`"
)


@dataclass(frozen=True)
class Version:
    """A trained model, and what is known about the run that made it."""

    name: str
    checkpoint: Checkpoint
    model: ModelSection
    """Settings that load the model, with its base."""
    report: RunReport | None
    """None if the model is a folder or its run has no report."""


def find_version(name: str | None) -> Version:
    """Return the model with a name.

    Args:
        name: a folder, a version of a model or of a checkpoint; None for the model in production.

    Raises:
        UserError: there is no such model, or not exactly one model is in production.
    """
    if name is not None and (folder := Path(name).expanduser()).is_dir():
        checkpoint = Checkpoint.load(folder)
        return Version(folder.name, checkpoint, _section(checkpoint, None), None)
    artifact, shown = find_artifact(name)
    checkpoint = artifact.load()
    report = _report(artifact)
    return Version(shown, checkpoint, _section(checkpoint, report), report)


def stages_of(run: str | None) -> list[Version]:
    """Return the SFT model and, if trained, the DPO model of a run; None: the last run."""
    found = find_run(run)
    versions = []
    for step in ("train_sft", "train_dpo"):
        if step in found.steps:
            checkpoint = output(found.steps[step]).load()
            versions.append(Version(step.removeprefix("train_").upper(), checkpoint, _section(checkpoint, None), None))
    return versions


def find_artifact(name: str | None) -> tuple[ArtifactVersionResponse, str]:
    """Return the artifact version of a checkpoint, and its name for display; arguments and errors as for `find_version`.

    It does not use `get_artifact_version` and `get_model_version`: inside a pipeline ZenML defers these until a step runs.
    """
    client = Client()
    if name is None:
        found = client.list_model_versions(stage=ModelStages.PRODUCTION, hydrate=True).items
        if len(found) != 1:
            there = ", ".join(f"{version.model.name}:production" for version in found)
            raise UserError(
                f"{f'several models are in production ({there})' if found else 'no model is in production'}: {REMEDY}"
            )
        return _of_model(found[0]), f"{found[0].model.name}-{found[0].number}"
    filters: dict[str, Any]
    model, _, version = name.rpartition(":")
    filters = {"artifact": model, "version": version}
    with contextlib.suppress(ValueError):
        filters = {"id": UUID(name)}
    if model or "id" in filters:
        artifacts = client.list_artifact_versions(**filters, data_type=CHECKPOINT, size=1, hydrate=True).items
        if artifacts:
            return artifacts[0], f"{artifacts[0].artifact.name}-{artifacts[0].version}"
    with contextlib.suppress(KeyError):  # no such model
        newest = client.list_model_versions(
            model=model or name, sort_by="desc:number", size=1, hydrate=True, **(_which(version) if model else {})
        ).items
        if newest:
            return _of_model(newest[0]), f"{newest[0].model.name}-{newest[0].number}"
    raise UserError(f"{name}: no such model: {REMEDY}")


def _which(version: str) -> dict[str, Any]:
    """Return the filter for a version of a model: its number, stage or name."""
    if version.isdecimal():
        return {"number": int(version)}
    return {"stage" if version in {stage.value for stage in ModelStages} - {"latest"} else "name": version}


def _of_model(version: ModelVersionResponse) -> ArtifactVersionResponse:
    """Return the checkpoint behind a version of a model."""
    names = ("verifier_checkpoint", "dpo_checkpoint", "sft_checkpoint")
    artifact = next(filter(None, map(version.get_artifact, names)), None)
    if artifact is None:
        raise UserError(f"{version.model.name}:{version.number}: has no checkpoint: {REMEDY}")
    return artifact


def _report(artifact: ArtifactVersionResponse) -> RunReport | None:
    """Return the report of the run that made an artifact; None if there is none, or another release of this project wrote it."""
    if artifact.producer_pipeline_run_id is None:
        return None
    steps = Client().get_pipeline_run(artifact.producer_pipeline_run_id).steps
    if "report" not in steps:
        return None
    try:
        report: RunReport = output(first_run(steps["report"])).load()
    except ValidationError:
        return None
    return report if artifact.run_metadata.get("digest") in report.lineage.models.values() else None


def _section(checkpoint: Checkpoint, report: RunReport | None) -> ModelSection:
    base = checkpoint.manifest.base
    method = "lora" if checkpoint.manifest.kind == "adapter" else "full"
    trusted = report is not None and report.lineage.config["model"]["trust_remote_code"]
    return ModelSection(base=base.id, revision=base.revision, method=method, trust_remote_code=trusted)
