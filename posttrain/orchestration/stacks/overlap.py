"""Prevent two runs of one schedule at the same time."""

from datetime import datetime, timedelta
from uuid import UUID

from zenml import get_step_context
from zenml.client import Client
from zenml.models import PipelineRunResponse
from zenml.utils.time_utils import utc_now

from posttrain.errors import UserError

SILENCE = timedelta(minutes=30)
"""A run without any sign of life for this long counts as dead: ZenML's own limit for the heartbeat of a step."""


def leave_to_earlier_run() -> None:
    """End a scheduled run if the previous run of its schedule is still in progress.

    Kubernetes does not start such a run (`concurrency_policy: Forbid`); other orchestrators have no such setting.

    Raises:
        UserError: names the earlier run.
    """
    run = get_step_context().pipeline_run
    if run.schedule and (other := run_in_progress(run.schedule.id, before=run)):
        raise UserError(
            f"run {other.name} of schedule {run.schedule.name} is still in progress, so this one ends: the next scheduled run "
            "uses the new data. If the earlier run hangs: zenml pipeline runs stop " + other.name
        )


def run_in_progress(schedule: UUID, before: PipelineRunResponse | None = None) -> PipelineRunResponse | None:
    """Return the run of a schedule that is in progress, or None.

    Args:
        before: consider only runs that began before this one.

    The status is not enough: a run whose machine was lost stays `running` forever. So a sign of life is needed too.
    """
    runs = Client().list_pipeline_runs(schedule_id=schedule, in_progress=True, sort_by="desc:created", hydrate=True)
    for run in runs.items:
        if before and (run.id == before.id or run.created >= before.created):
            continue
        if utc_now() - last_sign(run) < SILENCE:
            return run
        print(
            f"Run {run.name} counts as dead: its status is running, but its last sign of life was at {last_sign(run):%F %T} UTC"
        )
    return None


def last_sign(run: PipelineRunResponse) -> datetime:
    """Return when a run was last known to be alive: its start, or a start, heartbeat or end of one of its steps."""
    signs: list[datetime | None] = [run.created, run.start_time]
    for step in run.steps.values():
        signs += [step.created, step.start_time, step.latest_heartbeat, step.end_time]
    return max(sign for sign in signs if sign)
