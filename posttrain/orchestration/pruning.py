"""Give space back: delete old runs with what only they need, never what production or a promoted model's lineage needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from zenml.client import Client
from zenml.models import ArtifactVersionResponse, PipelineRunResponse, StepRunResponse

from posttrain.orchestration.model_versions.registry import JudgedVersion, judgements_of_all_models
from posttrain.orchestration.running_step.step_tracking import tracking_uri
from posttrain.orchestration.running_step.step_training import abandoned_checkpoints, artifact_files, delete_checkpoints
from posttrain.orchestration.running_step.stored_files import read_digests
from posttrain.tracking import delete_runs

logger = logging.getLogger(__name__)

PIPELINES = ("dpo_pipeline", "sweep_pipeline", "verifier_pipeline")
PAGE = 100


@dataclass
class Pruned:
    """What was deleted, or would be."""

    runs: list[str] = field(default_factory=list)
    """Names of pipeline runs."""
    n_artifacts: int = 0
    n_training_checkpoints: int = 0
    n_mlflow_runs: int = 0
    n_bytes: int = 0
    """Size of the deleted files in the artifact store."""

    def lines(self, dry: bool) -> Iterator[str]:
        """Yield the summary."""
        done = "Would delete" if dry else "Deleted"
        yield (
            f"{done} {len(self.runs)} runs, {self.n_artifacts} artifacts and {self.n_training_checkpoints} interrupted "
            f"trainings: {self.n_bytes / 1e6:.1f} MB of files"
        )
        if self.n_mlflow_runs and not dry:
            yield f"{self.n_mlflow_runs} runs in MLflow are marked as deleted. `mlflow gc` removes them from its database"


def prune(keep: int, dry: bool) -> Pruned:
    """Delete all but the newest runs of each pipeline.

    Kept are also: runs in progress, runs of every model that was ever promoted with all their artifacts, the checkpoint of the
    newest version of each model, and runs whose results a kept run took from the cache.

    Args:
        keep: number of finished runs of each pipeline to keep.
        dry: delete nothing, and return what would be deleted.
    """
    runs = {run.id: run for pipeline in PIPELINES for run in _runs(pipeline)}
    judgements = _lasting_judgements()
    kept = _kept_runs(runs, keep, {UUID(judgement.pipeline_run) for judgement in judgements})
    needed = {artifact.id for run_id in kept for artifact in _artifacts(runs[run_id])}
    needed |= {UUID(judgement.artifact) for judgement in judgements}
    # Preferences may be in the folder of an earlier artifact.
    store = Client().active_stack.artifact_store
    of_kept = (artifact for run_id in kept for artifact in _artifacts(runs[run_id]) if artifact.name == "preferences")
    places = {read_digests(artifact.uri, store).place for artifact in of_kept}
    needed |= {artifact.id for run in runs.values() for artifact in _artifacts(run) if artifact.uri in places}
    result = Pruned()
    for run_id, run in runs.items():
        if run_id not in kept:
            _delete_run(run, needed, result, dry)
    if not dry and result.runs:
        result.n_mlflow_runs = delete_runs(tracking_uri(), [str(run.id) for run in runs.values() if run.id not in kept])
    if not any(run.in_progress for run in runs.values()):
        for folder in abandoned_checkpoints(after_days=0):
            result.n_training_checkpoints += 1
            result.n_bytes += _size(folder)
            if not dry:
                delete_checkpoints(folder)
    return result


def _runs(pipeline: str) -> Iterator[PipelineRunResponse]:
    page = 1
    while True:
        found = Client().list_pipeline_runs(
            pipeline=pipeline, sort_by="desc:created", page=page, size=PAGE, hydrate=True
        )
        yield from found.items
        if page >= found.total_pages:
            return
        page += 1


def _lasting_judgements() -> list[JudgedVersion]:
    """Return those of all versions that were promoted, and of the newest version of each model."""
    return [
        judgement
        for of_model in judgements_of_all_models()
        for judgement in of_model
        if judgement.promoted or judgement is of_model[0]
    ]


def _kept_runs(runs: dict[UUID, PipelineRunResponse], keep: int, lasting: set[UUID]) -> set[UUID]:
    """Return the ids of the runs to keep, among all runs, newest first.

    Args:
        lasting: ids of runs that are always kept.
    """
    kept = {run.id for run in runs.values() if run.in_progress}
    for pipeline in PIPELINES:
        finished = [run.id for run in runs.values() if run.pipeline and run.pipeline.name == pipeline]
        kept |= set([run_id for run_id in finished if run_id not in kept][:keep])
    kept |= lasting & set(runs)
    waiting = list(kept)
    while waiting:  # the runs that made what these took from the cache
        for step in runs[waiting.pop()].steps.values():
            if step.original_step_run_id:
                origin = Client().get_run_step(step.original_step_run_id).pipeline_run_id
                if origin in runs and origin not in kept:
                    kept.add(origin)
                    waiting.append(origin)
    return kept


def _artifacts(run: PipelineRunResponse) -> Iterator[ArtifactVersionResponse]:
    for step in run.steps.values():
        for made in step.outputs.values():
            yield from made
        for taken in step.inputs.values():
            yield from taken


def _delete_run(run: PipelineRunResponse, needed: set[UUID], result: Pruned, dry: bool) -> None:
    """Delete a run with its artifacts, if no other run needs them, and its logs."""
    client = Client()
    files = {
        artifact.id: artifact.uri
        for step in run.steps.values()
        if not step.original_step_run_id
        for artifacts in step.outputs.values()
        for artifact in artifacts
        if artifact.id not in needed
    }
    logs = [*_logs(run), *(uri for step in run.steps.values() for uri in _logs(step))]
    result.runs.append(run.name)
    result.n_artifacts += len(files)
    result.n_bytes += sum(map(_size, [*files.values(), *logs]))
    if dry:
        return
    client.delete_pipeline_run(run.id)
    for artifact_id in files:
        if client.list_artifact_versions(id=artifact_id, only_unused=True).items:
            client.delete_artifact_version(artifact_id, delete_from_artifact_store=True)
    for uri in logs:
        _delete_files(uri)


def _logs(worked: PipelineRunResponse | StepRunResponse) -> Iterator[str]:
    """Yield where the logs of a run or step are; a step that was taken from the cache has none of its own."""
    for log in worked.log_collection or ():
        if log.uri:
            yield log.uri


def _size(uri: str) -> int:
    """Return the size of a file, or of all files in a folder; 0 if it does not exist."""
    files = artifact_files()
    return int(files.du(uri)) if files.exists(uri) else 0


def _delete_files(uri: str) -> None:
    files = artifact_files()
    if files.exists(uri):
        files.rm(uri, recursive=True)
