"""The model registry.

A ZenML pipeline with `model=` gets a new version in every run, also where everything came from the cache. Here the step
that judges a model makes its version, so there is one for each result and none for a repetition.
"""

import contextlib
from typing import Any

from zenml import get_step_context, log_metadata
from zenml.artifacts.utils import get_artifacts_versions_of_pipeline_run
from zenml.client import Client
from zenml.exceptions import EntityExistsError
from zenml.model.utils import link_artifact_version_to_model_version
from zenml.models import ModelVersionPipelineRunRequest, ModelVersionResponse


def register_version(name: str, metadata: dict[str, Any]) -> ModelVersionResponse:
    """A new version of the named model, linked to the current run and to all that the run has made or reused."""
    client, run = Client(), Client().get_pipeline_run(get_step_context().pipeline_run.id)
    with contextlib.suppress(EntityExistsError):
        client.create_model(name)
    version = client.create_model_version(name)
    for artifact in get_artifacts_versions_of_pipeline_run(run):
        link_artifact_version_to_model_version(artifact, version)
    client.zen_store.create_model_version_pipeline_run_link(
        ModelVersionPipelineRunRequest(model_version=version.id, pipeline_run=run.id)
    )
    log_metadata(metadata, model_version_id=version.id)
    return version
