"""Stopping a run: Ctrl-C and SIGTERM end it as stopped, and a run whose process was killed is closed by the next one.

Only for orchestrators that run the steps in the process that started the run. On a cluster the run goes on without it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse, PipelineRunUpdate, StepRunResponse, StepRunUpdate

from posttrain.compat.zenml_internals import update_run_record, update_step_record
from posttrain.errors import Preempted
from posttrain.storage.processes import has_died, this_process

logger = logging.getLogger(__name__)

PROCESS = "process"
"""Name of the entry in a run's `extra` with the process that runs its steps."""
N_RECENT = 50
"""Number of newest unfinished runs that are looked at."""


class Stopped(KeyboardInterrupt):
    """The user ended the run with Ctrl-C, or the system with SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _State:
    """Whether a run is at work in this process, and the first signal that asked it to stop."""

    is_active = False
    signal: int | None = None


def runs_here() -> bool:
    """Return whether the active stack runs the steps in this process."""
    return bool(Client().active_stack.orchestrator.flavor == "local")


def owner() -> dict[str, str]:
    """Return what a run's `extra` records about the process that runs its steps."""
    return {PROCESS: this_process()} if runs_here() else {}


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM raises `Stopped`, and the second ends the process at once.

    Nothing changes outside the main thread, which alone can handle signals, and where the steps run elsewhere.
    """
    if threading.current_thread() is not threading.main_thread() or not runs_here():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(_is_news)
    _State.is_active, _State.signal = True, None
    try:
        yield
    finally:
        _State.is_active, _State.signal = False, None
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
        for handler in handlers:
            handler.removeFilter(_is_news)


def _stop(number: int, frame: FrameType | None) -> None:
    if _State.signal is not None:
        os._exit(128 + number)
    _State.signal = number
    raise Stopped(number)


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for what ZenML logs about the failure of a step that was stopped."""
    stopping = _State.signal is not None or (record.exc_info and isinstance(record.exc_info[1], Stopped | Preempted))
    return not (stopping and record.name.startswith("zenml"))


@contextmanager
def stopping_step(run: PipelineRunResponse, step: StepRunResponse) -> Iterator[None]:
    """Mark a step and its run as stopping if the step is stopped: ZenML then ends both as stopped and not as failed."""
    try:
        yield
    except (Stopped, Preempted):
        if _State.is_active:
            update_run_record(Client(), run.id, PipelineRunUpdate(status=ExecutionStatus.STOPPING))
            update_step_record(Client(), step.id, StepRunUpdate(status=ExecutionStatus.STOPPING))
        raise


def close(run: PipelineRunResponse) -> None:
    """End a run, and its steps that have not ended, as stopped."""
    client = Client()
    for step in run.steps.values():
        if not step.status.is_finished:
            update_step_record(client, step.id, StepRunUpdate(status=ExecutionStatus.STOPPED))
    if not client.get_pipeline_run(run.id).status.is_finished:
        update_run_record(client, run.id, PipelineRunUpdate(status=ExecutionStatus.STOPPING))


def close_dead_runs(pipeline: str) -> None:
    """End the runs of a pipeline whose process was killed on this host."""
    client = Client()
    unfinished = client.list_pipeline_runs(
        pipeline=pipeline, in_progress=True, sort_by="desc:created", size=N_RECENT, hydrate=True
    )
    for run in unfinished.items:
        process = run.config.extra.get(PROCESS)
        if process and has_died(str(process)):
            close(run)


def close_own_run(pipeline: str) -> str:
    """End the newest run of this process as stopped, and return its name; empty if there is none."""
    client = Client()
    newest = client.list_pipeline_runs(pipeline=pipeline, sort_by="desc:created", size=1, hydrate=True).items
    for run in newest:
        if run.config.extra.get(PROCESS) == this_process():
            if not run.status.is_finished:
                close(run)
            return str(run.name)
    return ""


def told_by(error: BaseException | None) -> str:
    """Return what the training said when it saved itself, from the exceptions that led to this one; empty if it did not."""
    while error is not None:
        if isinstance(error, Preempted):
            return str(error)
        error = error.__cause__ or error.__context__
    return ""
