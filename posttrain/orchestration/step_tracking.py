"""A step's place in MLflow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zenml import get_step_context, log_metadata
from zenml.client import Client
from zenml.exceptions import IllegalOperationError

from posttrain.config import DpoSection, RunConfig
from posttrain.errors import UserError
from posttrain.tracking import TrackedStage, Tracker, default_tracking_uri, send

logger = logging.getLogger(__name__)


@contextmanager
def tracked(*, nested: bool, point: DpoSection | None = None) -> Iterator[TrackedStage]:
    """The MLflow run of the current step, with the run's settings; a link to it is kept with the step.

    The experiment's name is read from the run and is no parameter of a step, so renaming it trains nothing again.

    Args:
        nested: whether the step has curves of its own, else it writes to the run of the whole pipeline.
        point: of a sweep, in place of the section that the run was told.
    """
    context = get_step_context()
    config = RunConfig.model_validate((context.pipeline_run.config.parameters or {})["config"])
    settings = config.model_dump(exclude={"sweep"} if point or not config.sweep else None)
    if point:
        settings["dpo"] = point.model_dump()
    run, step = context.pipeline_run, context.step_run.name
    tracker = Tracker(tracking_uri(), config.tracking.experiment, str(run.id), run.name, ended)
    stage = tracker.stage(step) if nested else tracker.parent(step)
    try:
        with stage:
            stage.log_params(settings)
            stage.log_dict(settings, "config.json")
            yield stage
    finally:
        if stage.unsent:
            _keep(stage.unsent)
    log_metadata({"mlflow": stage.link(), **({"mlflow_serve": stage.serve_command} if stage.serve_command else {})})


def ended(pipeline_run: str, step: str) -> str | None:
    """How a step has ended that MLflow was not told of; None where it goes on, or its run is none of this ZenML.

    A pod that was killed tells MLflow nothing, but its orchestrator tells ZenML.
    """
    try:
        run = Client().get_pipeline_run(pipeline_run)
    except KeyError:
        return None
    status = run.steps[step].status if step in run.steps else run.status
    if not (status.is_finished or run.status.is_finished):
        return None
    return "FINISHED" if status.is_successful else "KILLED"


def _keep(unsent: Path) -> None:
    """Copies what MLflow has not taken to the artifact store, unless that is here: a pod takes its files with it."""
    store = Client().active_stack.artifact_store
    if not store.config.is_local:
        uri = f"{store.path}/unsent/{unsent.name}"
        store.makedirs(f"{store.path}/unsent")
        with store.open(uri, "w") as file:
            file.write(unsent.read_text(encoding="utf-8"))
        logger.warning("It is also at %s, and will be when this machine is gone.", uri)


def send_unsent(place: str) -> int:
    """Sends to MLflow what it did not take during a run, and returns the number of records.

    Raises:
        UserError: the file cannot be read, or MLflow does not take the records.
    """
    return send(read_unsent(place), tracking_uri())


def read_unsent(place: str) -> str:
    """What MLflow has not taken: a file here, or in the artifact store of the active stack.

    Raises:
        UserError: there is none.
    """
    try:
        if "://" not in place:
            return Path(place).read_text(encoding="utf-8")
        with Client().active_stack.artifact_store.open(place, "r") as file:
            return str(file.read())
    except (OSError, IllegalOperationError) as error:
        raise UserError(
            f"{place}: cannot be read ({error}): name a file that a run has named as its records"
        ) from error


def tracking_uri() -> str:
    """Of the active stack's MLflow tracker, if it has one; its credentials are put where MLflow looks for them."""
    component: Any = Client().active_stack.experiment_tracker
    if component is None or component.flavor != "mlflow":
        return default_tracking_uri()
    component.configure_mlflow()
    return str(component.get_tracking_uri())
