"""Create, update, pause and delete schedules: a run file creates one, and running the file again updates it.

ZenML can create a schedule but not replace one, and on SageMaker it can neither pause nor delete it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.models import PipelineRunResponse, ScheduleResponse, ScheduleUpdate
from zenml.orchestrators import BaseOrchestrator

from posttrain.compat.zenml_internals import archive_schedule_record, update_schedule_record
from posttrain.errors import UserError
from posttrain.orchestration.stacks.overlap import run_in_progress

logger = logging.getLogger(__name__)


@contextmanager
def replacing(name: str | None) -> Iterator[None]:
    """Replace the schedule of this name by one that is created in the context; keep the old one if that fails.

    Raises:
        UserError: a run of the old schedule is in progress and would be ended with it.
    """
    if name is None:
        yield
        return
    client, aside = Client(), f"{name} (replaced)"
    standing = [
        schedule for schedule in (_find(name), _find(aside)) if schedule
    ]  # aside: left by an interrupted update
    for schedule in standing:
        _end_no_run(schedule)
    if standing:
        update_schedule_record(client, standing[0].id, ScheduleUpdate(name=aside))
    try:
        yield
    except BaseException:
        if half_made := _find(name):
            delete(half_made)
        if standing:
            update_schedule_record(client, standing[0].id, ScheduleUpdate(name=name))
        raise
    for schedule in standing:
        delete(schedule)
    if standing and not standing[0].active:
        set_active(find(name), False)
        click.echo(f"Schedule {name} is up to date and still paused. To resume it: posttrain schedule resume {name}")
    elif standing:
        click.echo(f"Schedule {name} is up to date.")


def find(name: str) -> ScheduleResponse:
    """Return the schedule with a name.

    Raises:
        UserError: there is no such schedule; lists the existing ones.
    """
    if schedule := _find(name):
        return schedule
    names = ", ".join(schedule.name for schedule in every()) or "none"
    raise UserError(f"schedule {name!r}: no such schedule (existing: {names})")


def every() -> list[ScheduleResponse]:
    """Return all schedules of the project, newest first."""
    return list(Client().list_schedules(sort_by="desc:created", size=1000, hydrate=True).items)


def last_run(schedule: ScheduleResponse) -> PipelineRunResponse | None:
    """Return the newest run that a schedule has started."""
    runs = Client().list_pipeline_runs(schedule_id=schedule.id, sort_by="desc:created", size=1).items
    return runs[0] if runs else None


def set_active(schedule: ScheduleResponse, active: bool) -> None:
    """Pause or resume a schedule.

    Raises:
        UserError: a run of it is in progress, or the orchestrator does not support it.
    """
    orchestrator = _orchestrator(schedule)
    if schedule.active == active:
        return
    if not active:
        _end_no_run(schedule)
    if trigger := _eventbridge(schedule, orchestrator):
        trigger.set_state("ENABLED" if active else "DISABLED")
        update_schedule_record(Client(), schedule.id, ScheduleUpdate(active=active))
    elif orchestrator and orchestrator.supports_schedule_updates:
        Client().update_schedule(schedule.id, active=active)
    else:
        where = (
            f"orchestrator {orchestrator.name}" if orchestrator else "its orchestrator, which is no longer registered"
        )
        raise UserError(f"schedule {schedule.name}: ZenML cannot pause it on {where}: pause it there")


def delete(schedule: ScheduleResponse) -> None:
    """Delete a schedule in its orchestrator and then in ZenML, which keeps its runs.

    Raises:
        UserError: a run of it is in progress, or the orchestrator does not support it; nothing is deleted then.
    """
    orchestrator = _orchestrator(schedule)
    _end_no_run(schedule)
    if trigger := _eventbridge(schedule, orchestrator):
        trigger.delete()
        archive_schedule_record(Client(), schedule.id)
    elif orchestrator is None or orchestrator.supports_schedule_deletion or not schedule.run_metadata:
        Client().delete_schedule(schedule.id)
    else:
        raise UserError(
            f"schedule {schedule.name}: ZenML cannot delete schedules of this orchestrator, so it would keep starting runs: "
            f"delete it there, then run: zenml pipeline schedule delete {schedule.name}"
        )


def _find(name: str) -> ScheduleResponse | None:
    found = Client().list_schedules(name=name, hydrate=True).items
    return found[0] if found else None


def _end_no_run(schedule: ScheduleResponse) -> None:
    """Check that no run of a schedule is in progress: its token is the schedule's and ends with it, as do the pods of a CronJob.

    Raises:
        UserError: names the run, and how to stop it.
    """
    if run := run_in_progress(schedule.id):
        raise UserError(
            f"schedule {schedule.name}: its run {run.name} is in progress and would be ended by the change: wait for it, or "
            f"stop it first: zenml pipeline runs stop {run.name}"
        )


def _orchestrator(schedule: ScheduleResponse) -> BaseOrchestrator | None:
    """Return the orchestrator of a schedule, or None if it has been deleted."""
    if schedule.orchestrator_id is None:
        return None
    model = Client().get_stack_component(StackComponentType.ORCHESTRATOR, schedule.orchestrator_id)
    orchestrator = BaseOrchestrator.from_model(model)
    assert isinstance(orchestrator, BaseOrchestrator)
    return orchestrator


class _Trigger:
    """The Amazon EventBridge schedule that starts a SageMaker pipeline; ZenML creates it and keeps only a link to it."""

    KEPT = (
        "ScheduleExpression",
        "ScheduleExpressionTimezone",
        "StartDate",
        "EndDate",
        "Description",
        "KmsKeyArn",
        "FlexibleTimeWindow",
        "Target",
    )

    def __init__(self, client: Any, group: str, name: str) -> None:
        self.client, self.place = client, {"GroupName": group, "Name": name}

    def set_state(self, state: str) -> None:
        """Enable or disable the schedule; AWS replaces all of its fields, so all are passed."""
        now = self.client.get_schedule(**self.place)
        kept = {key: now[key] for key in self.KEPT if key in now}
        self.client.update_schedule(**self.place, **kept, State=state)

    def delete(self) -> None:
        """Delete the schedule, if it still exists."""
        try:
            self.client.delete_schedule(**self.place)
        except self.client.exceptions.ResourceNotFoundException:
            logger.warning("EventBridge no longer has a schedule %s", self.place["Name"])


def _eventbridge(schedule: ScheduleResponse, orchestrator: Any) -> _Trigger | None:
    """Return the trigger of a schedule on SageMaker, or None on other orchestrators."""
    link = schedule.run_metadata.get("trigger_url")
    if orchestrator is None or orchestrator.flavor != "sagemaker" or not isinstance(link, str):
        return None
    group, name = link.partition("#schedules/")[2].split("/", 1)
    return _Trigger(orchestrator.sagemaker_session.boto_session.client("scheduler"), group, name)
