"""A step's place in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zenml import get_step_context, log_metadata
from zenml.client import Client

from posttrain.config import RunConfig
from posttrain.tracking import Stage, Tracker, default_tracking_uri


@contextmanager
def tracked(*, nested: bool) -> Iterator[Stage]:
    """The MLflow run of the current step, with the run's settings; a link to it is kept with the step.

    The experiment's name is read from the run and is no parameter of a step, so renaming it trains nothing again.

    Args:
        nested: whether the step has curves of its own, else it writes to the run of the whole pipeline.
    """
    context = get_step_context()
    config = RunConfig.model_validate(context.pipeline_run.config.parameters["config"])
    tracker = Tracker(
        tracking_uri(), config.tracking.experiment, str(context.pipeline_run.id), context.pipeline_run.name
    )
    step = context.step_run.name
    with tracker.stage(step) if nested else tracker.parent(step) as stage:
        stage.log_params(config.model_dump())
        stage.log_dict(config.model_dump(), "config.json")
        yield stage
    log_metadata({"mlflow": stage.link(), **({"mlflow_serve": stage.serve_command} if stage.serve_command else {})})


def tracking_uri() -> str:
    """Of the active stack's MLflow tracker, if it has one; its credentials are put where MLflow looks for them."""
    component: Any = Client().active_stack.experiment_tracker
    if component is None or component.flavor != "mlflow":
        return default_tracking_uri()
    component.configure_mlflow()
    return str(component.get_tracking_uri())
