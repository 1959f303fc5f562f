"""What a step that trains is told beside its own settings, and the training checkpoints that it leaves."""

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from zenml import get_step_context, log_metadata
from zenml.client import Client
from zenml.models import PipelineRunResponse

from posttrain.config import ModelSection, RunConfig, TrainSection
from posttrain.models.checkpoint import Base
from posttrain.orchestration.cache_key import code_digest
from posttrain.orchestration.workspace import workspace
from posttrain.tracking import TrackedStage, metrics_callback
from posttrain.training.resume.training_checkpoints import TrainingCheckpoints, training_key
from posttrain.training.trainer import TrainingJob

CHECKPOINTS = "training-checkpoints"
"""Folder of the artifact store, and the metadata of a step that says where in it its own lie."""


def training_stage(
    run: TrackedStage, base: Base, model: ModelSection, section: TrainSection, seed: int, *data: str
) -> TrainingJob:
    """The stage of the current step; what was interrupted is found again by all that the training depends on.

    Args:
        data: digests of what is trained on and from.
    """
    context = get_step_context()
    config = RunConfig.model_validate((context.pipeline_run.config.parameters or {})["config"])
    about = (base.model_dump(), model.model_dump(), section.model_dump(), seed, data, code_digest())
    name = type(section).__name__.removesuffix("Section").lower()
    store = Client().active_stack.artifact_store.path
    checkpoints = TrainingCheckpoints(
        artifact_files, f"{store}/{CHECKPOINTS}/{name}-{training_key(about)[:32]}", config.checkpoints.interval_s
    )
    log_metadata({CHECKPOINTS: checkpoints.folder})
    return TrainingJob(base, model, seed, workspace(), (metrics_callback(run),), checkpoints)


def artifact_files() -> AbstractFileSystem:
    """The file system of the active stack's artifact store, with keys that are valid now."""
    return getattr(Client().active_stack.artifact_store, "filesystem", None) or LocalFileSystem(auto_mkdir=True)


def delete_training_checkpoints(run: PipelineRunResponse) -> None:
    """Removes those of every training of a run, or of the run that a training was served from: their results are stored."""
    for step in run.steps.values():
        source = Client().get_run_step(step.original_step_run_id) if step.original_step_run_id else step
        if folder := source.run_metadata.get(CHECKPOINTS):
            TrainingCheckpoints(artifact_files, str(folder)).delete()
