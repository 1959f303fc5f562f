"""The MLflow run of a step."""

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
from posttrain.tracking import TrackedStage, Tracker, checked_uri, default_tracking_uri, send

logger = logging.getLogger(__name__)


@contextmanager
def tracked(*, nested: bool, point: DpoSection | None = None) -> Iterator[TrackedStage]:
    """Open the MLflow run of the current step and log the settings; ZenML stores a link to it with the step.

    The experiment's name is read from the pipeline run and is not a parameter of the step, so renaming it retrains nothing.

    Args:
        nested: whether the step gets a run of its own; otherwise it writes to the run of the whole pipeline.
        point: settings of one point of a sweep, logged instead of those of the run.
    """
    context = get_step_context()
    config = RunConfig.model_validate((context.pipeline_run.config.parameters or {})["config"])
    settings = config.model_dump(exclude=_not_used(config, point))
    if point:
        settings["dpo"] |= point.model_dump(exclude={"start"})
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


def _not_used(config: RunConfig, point: DpoSection | None) -> set[str]:
    """Return the sections that a run, or a point of a sweep, does not use."""
    of_verifier = {"dpo", "finetuning_type"} if config.verifier else {"verifier"}
    return of_verifier | ({"sweep"} if point or not config.sweep else set())


def ended(pipeline_run: str, step: str) -> str | None:
    """Return the final status of a step that could not report it to MLflow; None if it is running or its run is unknown here.

    A killed pod reports nothing to MLflow, but its orchestrator reports to ZenML.
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
    """Copy records that MLflow did not accept to a remote artifact store: a pod's files are lost when it ends."""
    store = Client().active_stack.artifact_store
    if not store.config.is_local:
        uri = f"{store.path}/unsent/{unsent.name}"
        store.makedirs(f"{store.path}/unsent")
        with store.open(uri, "w") as file:
            file.write(unsent.read_text(encoding="utf-8"))
        logger.warning("The file is also stored at %s, where it outlives this machine.", uri)


def send_unsent(place: str) -> int:
    """Send the records that MLflow did not accept during a run, and return their number.

    Raises:
        UserError: the file cannot be read, or MLflow rejects the records.
    """
    return send(read_unsent(place), tracking_uri())


def read_unsent(place: str) -> str:
    """Return the content of a file of unsent records, on this machine or in the artifact store of the active stack.

    Raises:
        UserError: there is no such file.
    """
    try:
        if "://" not in place:
            return Path(place).read_text(encoding="utf-8")
        with Client().active_stack.artifact_store.open(place, "r") as file:
            return str(file.read())
    except (OSError, IllegalOperationError) as error:
        raise UserError(
            f"{place}: cannot be read ({error}): name the file that the run printed for its unsent records"
        ) from error


def tracking_uri() -> str:
    """Return the address of the active stack's MLflow tracker, else the default one; set the tracker's credentials for MLflow."""
    component: Any = Client().active_stack.experiment_tracker
    if component is None or component.flavor != "mlflow":
        return default_tracking_uri()
    component.configure_mlflow()
    return checked_uri(str(component.get_tracking_uri()))
