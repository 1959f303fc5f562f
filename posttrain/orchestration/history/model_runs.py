"""The runs of a model, found by the name in their settings."""

from __future__ import annotations

from collections.abc import Iterator

from zenml.client import Client
from zenml.models import PipelineRunResponse

from posttrain.config import RunConfig
from posttrain.orchestration.spent import settings_of

PIPELINES = ("dpo_pipeline", "sweep_pipeline")
PAGE = 100


def runs_of(model: str) -> Iterator[PipelineRunResponse]:
    """Yield all runs of a model, newest first."""
    return (run for run in all_runs() if model_of(run) == model)


def all_runs() -> Iterator[PipelineRunResponse]:
    """Yield the runs of all models, newest first."""
    page = 1
    while True:
        found = Client().list_pipeline_runs(sort_by="desc:created", page=page, size=PAGE, hydrate=True)
        yield from (run for run in found.items if run.pipeline and run.pipeline.name in PIPELINES)
        if page >= found.total_pages:
            return
        page += 1


def model_of(run: PipelineRunResponse) -> str:
    """Return the name of the model that a run trains."""
    return str(settings_of(run).get("name", RunConfig.model_fields["name"].default))
