"""No two runs of one schedule at once."""

from datetime import datetime, timedelta
from uuid import UUID

from zenml import get_step_context
from zenml.client import Client
from zenml.models import PipelineRunResponse
from zenml.utils.time_utils import utc_now

from posttrain.errors import UserError

SILENCE = timedelta(minutes=30)
"""After which a run that says nothing is taken for dead: ZenML's own limit for the heartbeat of a step."""


def leave_to_earlier_run() -> None:
    """Ends a scheduled run that finds the one before it still going.

    Kubernetes starts no such run in the first place (`concurrency_policy: Forbid`); other orchestrators know nothing like it.

    Raises:
        UserError: names the earlier run.
    """
    run = get_step_context().pipeline_run
    if run.schedule and (other := run_in_progress(run.schedule.id, before=run)):
        raise UserError(
            f"left to run {other.name} of schedule {run.schedule.name}, which is still going: the next one on schedule takes "
            "up what is new. If it hangs: zenml pipeline runs stop " + other.name
        )


def run_in_progress(schedule: UUID, before: PipelineRunResponse | None = None) -> PipelineRunResponse | None:
    """The run of a schedule that is going, of those that began before another one.

    Its status does not tell: a run whose machine was lost stays `running` for ever. So it must have given a sign of life.
    """
    runs = Client().list_pipeline_runs(schedule_id=schedule, in_progress=True, sort_by="desc:created", hydrate=True)
    for run in runs.items:
        if before and (run.id == before.id or run.created >= before.created):
            continue
        if utc_now() - last_sign(run) < SILENCE:
            return run
        print(
            f"Run {run.name} is given up: it says that it is going, but has been silent since {last_sign(run):%F %T} UTC"
        )
    return None


def last_sign(run: PipelineRunResponse) -> datetime:
    """When a run was last known to be alive: its beginning, or a beginning, heartbeat or end of one of its steps."""
    signs: list[datetime | None] = [run.created, run.start_time]
    for step in run.steps.values():
        signs += [step.created, step.start_time, step.latest_heartbeat, step.end_time]
    return max(sign for sign in signs if sign)
