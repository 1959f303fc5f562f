"""The class of all pipelines: one YAML file contains all settings, and a mistake in it is reported in one line."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
from zenml.client import Client
from zenml.enums import ExecutionMode
from zenml.models import PipelineRunResponse
from zenml.pipelines.pipeline_definition import Pipeline

from posttrain import configure
from posttrain.compat.zenml_internals import without_input_schema
from posttrain.errors import UserError
from posttrain.orchestration.interruption import (
    Stopped,
    close_dead_runs,
    close_own_run,
    owner,
    stoppable,
    told_by,
)
from posttrain.orchestration.log_colours import disable_colours_in_files
from posttrain.orchestration.run_file import RunFile, read_run_file
from posttrain.orchestration.running_step.stored_files import DamagedArtifact
from posttrain.orchestration.stacks.schedules import replacing
from posttrain.storage.plain_text import shown
from posttrain.storage.scratch import scratch_folder

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk, and of a user's full share of it."""


class CheckedPipeline(Pipeline):
    """A pipeline that checks its run file before any work starts and prints the outcome at the end."""

    def __init__(
        self,
        name: str,
        entrypoint: Any,
        default_config: Path,
        print_outcome: Callable[[PipelineRunResponse], None] | None = None,
    ) -> None:
        """Create a pipeline.

        Args:
            default_config: the run file that is used where none is named.
            print_outcome: prints the outcome of a successful run; None: the verdict, as dpo_pipeline does.
        """
        configure()
        disable_colours_in_files()
        without_input_schema(CheckedPipeline)
        super().__init__(name=name, entrypoint=entrypoint)
        self.default_config = default_config
        self.run_file: RunFile | None = None
        self.print_outcome = print_outcome or _print_verdict

    def with_options(self, config_path: str | None = None, **options: Any) -> Pipeline:  # type: ignore[override]
        """Return a copy with all settings of one file.

        The default file is chosen here and not in the pipeline's definition: ZenML would merge a second file into it.
        """
        self._make_steps_importable()
        path = config_path or os.path.relpath(self.default_config)
        with clean_errors():
            run_file = read_run_file(path, self.default_config.parents[1])
        options = {"run_name": run_file.run_name, "steps": run_file.steps_of_points, "extra": owner(), **options}
        configured = super().with_options(config_path=path, execution_mode=_execution_mode(), **options)
        assert isinstance(configured, CheckedPipeline)
        configured.run_file = run_file
        return configured

    def __call__(self, *args: Any, **kwargs: Any) -> PipelineRunResponse | None:
        """Run the pipeline, and print the outcome or how to see it later.

        If a stored result is damaged, the pipeline runs again: the step that made it is not cached any more.
        """
        self._make_steps_importable()
        close_dead_runs(self.name)
        _print_other_store()
        damaged: set[str] = set()
        while True:
            try:
                with stoppable(), scratch_folder(), clean_errors():
                    return self._run_and_report(*args, **kwargs)
            except DamagedArtifact as error:
                if error.uri in damaged:
                    raise click.ClickException(shown(error)) from error
                damaged.add(error.uri)
                logger.warning("%s. The run is repeated.", error)
            except KeyboardInterrupt as error:
                self._leave(error)

    def _run_and_report(self, *args: Any, **kwargs: Any) -> PipelineRunResponse | None:
        with replacing(self.run_file.schedule if self.run_file else None):
            run = super().__call__(*args, **kwargs)
        _print_outcome(run, self.print_outcome)
        return run

    def _leave(self, error: KeyboardInterrupt) -> NoReturn:
        """Say in one line what a signal stopped, and end the process with its exit code."""
        if isinstance(error, Stopped):
            name = close_own_run(self.name)
            what = told_by(error) or "stopped"
            click.echo(f"Run {name or self.name}: {what}. The same command continues", err=True)
            sys.exit(error.exit_code)
        click.echo("This terminal no longer follows the run, which continues. Its outcome: posttrain report", err=True)
        sys.exit(128 + signal.SIGINT)

    def _make_steps_importable(self) -> None:
        """Add the project's folder to the path: ZenML adds it only while it imports the pipeline, not for the steps."""
        if (root := str(self.default_config.parents[1])) not in sys.path:
            sys.path.append(root)


def _execution_mode() -> ExecutionMode:
    """Return the mode that stops at the first failure, or, where the orchestrator lacks it, skips the steps that depend on it."""
    supported = Client().active_stack.orchestrator.supported_execution_modes
    return ExecutionMode.FAIL_FAST if ExecutionMode.FAIL_FAST in supported else ExecutionMode.CONTINUE_ON_FAILURE


def _print_other_store() -> None:
    """Print a hint if earlier runs are probably in another ZenML store."""
    from posttrain.orchestration.finished_runs import note_of_other_store

    if note := note_of_other_store():
        click.echo(note, err=True)


def _print_verdict(run: PipelineRunResponse) -> None:
    """Print the report of a run that judged a model."""
    # Imported late: the steps have loaded these packages by now, and loading them first would delay the check of the config.
    from posttrain.orchestration.finished_runs import read_outcome
    from posttrain.reporting.terminal import Report, print_report
    from posttrain.reporting.verifier_summary import print_verifier

    outcome = read_outcome(run.id)
    if isinstance(outcome, Report):
        print_report(outcome)
    else:
        print_verifier(outcome)


def _print_outcome(
    run: PipelineRunResponse | None, print_report: Callable[[PipelineRunResponse], None] = _print_verdict
) -> None:
    """Print the report of a finished run.

    Raises:
        UserError: the run failed on a cluster, whose exceptions do not reach this terminal; names the step and the reason.
    """
    if run is None:
        click.echo(
            "Scheduled. List schedules and their runs: posttrain schedule list. Show the last outcome: posttrain report"
        )
    elif run.status.is_successful:
        print_report(run)
    elif run.status.is_finished:
        ended = [step for step in run.steps.values() if step.status.is_finished and not step.status.is_successful]
        why = [
            f"{step.name}: {(step.exception_info and step.exception_info.message) or step.status.value}"
            for step in ended
        ]
        raise UserError(f"run {run.name} {run.status.value}: {'; '.join(why) or 'before the first step: see its log'}")
    else:
        click.echo(
            f"Run {run.name} continues without this terminal. Once it has ended, run: posttrain report {run.name}"
        )


@contextmanager
def clean_errors() -> Iterator[None]:
    """Report a user's mistake in one line, without a stack trace in the log."""
    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(_without_trace)
    try:
        yield
    except DamagedArtifact:
        raise  # the run is repeated
    except UserError as error:
        raise click.ClickException(shown(error)) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        place = f" ({error.filename})" if error.filename else ""
        raise click.ClickException(
            f"the disk is full{place}: free space, for example with `posttrain prune`, or move TMPDIR, POSTTRAIN_CACHE or the "
            "artifact store. The same command continues"
        ) from error
    finally:
        for handler in handlers:
            handler.removeFilter(_without_trace)


def _without_trace(record: logging.LogRecord) -> bool:
    error = record.exc_info and record.exc_info[1]
    if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in FULL):
        record.exc_info = None
    return True
