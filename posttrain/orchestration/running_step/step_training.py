"""The training job of a step, and the training checkpoints that the job writes."""

import logging
import time

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from zenml import get_step_context, log_metadata
from zenml.client import Client
from zenml.models import PipelineRunResponse

from posttrain.config import CheckpointsSection, ModelSection, TrainSection
from posttrain.models.checkpoint import Base
from posttrain.orchestration.caching.cache_key import step_digest
from posttrain.orchestration.running_step.workspace import workspace
from posttrain.tracking import TrackedStage, metrics_callback
from posttrain.training.resume.training_checkpoints import TrainingCheckpoints, training_key
from posttrain.training.trainer import TrainingJob

logger = logging.getLogger(__name__)

ABANDONED_AFTER_DAYS = 14
CHECKPOINTS = "training-checkpoints"
"""Name of the folder in the artifact store, and of the metadata entry with a step's own folder in it."""


def training_stage(
    run: TrackedStage, base: Base, model: ModelSection, section: TrainSection, seed: int, *data: str
) -> TrainingJob:
    """Return the training job of the current step.

    The training checkpoints are stored under a hash of everything that the result depends on, so that a later run with the
    same settings, data and code resumes an interrupted training.

    Args:
        data: digests of the training data and of the checkpoint that training starts from.
    """
    context = get_step_context()
    settings = (context.pipeline_run.config.parameters or {})["config"].get("checkpoints", {})
    content = (base.digest, base.template_digest, model.without_paths(), section.model_dump(), seed, data)
    digest = step_digest(context.step_run.spec.source.module)
    name = type(section).__name__.removesuffix("Section").lower()
    store = Client().active_stack.artifact_store.path
    interval_s = CheckpointsSection.model_validate(settings).interval_s
    checkpoints = TrainingCheckpoints(
        artifact_files,
        f"{store}/{CHECKPOINTS}/{name}-{training_key(*content, digest)[:32]}",
        None if interval_s == "auto" else interval_s,
    )
    log_metadata({CHECKPOINTS: checkpoints.folder})
    return TrainingJob(base, model, seed, workspace(), (metrics_callback(run),), checkpoints)


def artifact_files() -> AbstractFileSystem:
    """Return the file system of the active stack's artifact store, with current credentials."""
    return getattr(Client().active_stack.artifact_store, "filesystem", None) or LocalFileSystem(auto_mkdir=True)


def delete_training_checkpoints(run: PipelineRunResponse) -> None:
    """Delete the training checkpoints of a run's trainings, also of cached ones, whose results are stored, and abandoned ones."""
    for step in run.steps.values():
        source = Client().get_run_step(step.original_step_run_id) if step.original_step_run_id else step
        if folder := source.run_metadata.get(CHECKPOINTS):
            delete_checkpoints(str(folder))
    for folder in abandoned_checkpoints():
        delete_checkpoints(folder)


def delete_checkpoints(folder: str) -> None:
    """Delete the checkpoints of one training. A store that refuses it does not fail the run, whose results are complete."""
    try:
        TrainingCheckpoints(artifact_files, folder).delete()
    except Exception as error:  # noqa: BLE001 (each kind of store raises its own exceptions)
        logger.warning(
            "The training checkpoints in %s were not deleted (%s: %s). They are not needed any more: delete them, or allow "
            "deleting in the store.", folder, type(error).__name__, str(error).split("\n")[0],
        )  # fmt: skip


def abandoned_checkpoints(after_days: float = ABANDONED_AFTER_DAYS) -> list[str]:
    """Return the folders of trainings that were interrupted and not continued for some days."""
    files, parent = artifact_files(), f"{Client().active_stack.artifact_store.path}/{CHECKPOINTS}"
    before = time.time() - after_days * 86400
    try:
        if not files.exists(parent):
            return []
        return [folder for folder in files.ls(parent, detail=False) if _newest(files, folder) < before]
    except Exception as error:  # noqa: BLE001 (as above)
        logger.warning("%s cannot be searched for abandoned training checkpoints (%s).", parent, type(error).__name__)
        return []


def _newest(files: AbstractFileSystem, folder: str) -> float:
    """Return when a file below a folder was last written, in seconds since 1970; 0 if there is none."""
    return max((files.modified(path).timestamp() for path in files.find(folder)), default=0.0)
