"""What every pipeline here has in common: one YAML file tells it everything, and a mistake costs one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from zenml.client import Client
from zenml.config.cache_policy import CachePolicy
from zenml.enums import ExecutionMode
from zenml.models import PipelineRunResponse
from zenml.pipelines.pipeline_definition import Pipeline

from posttrain import configure
from posttrain.errors import UserError
from posttrain.orchestration.cache_key import code_digest
from posttrain.orchestration.run_file import check_run_file, schedule_name, settings_of_points
from posttrain.orchestration.schedules import replacing


class CheckedPipeline(Pipeline):
    """A pipeline whose file is checked before any work, and that prints its outcome at the end."""

    def __init__(self, name: str, entrypoint: Any, default_config: Path) -> None:
        configure()
        super().__init__(name=name, entrypoint=entrypoint, cache_policy=CachePolicy(cache_func=code_digest))
        self.default_config = default_config
        self.run_file: str | None = None

    def with_options(self, config_path: str | None = None, **options: Any) -> Pipeline:  # type: ignore[override]
        """A copy that is told everything by one file.

        The default is taken here and not baked in: ZenML merges a second file into the first, key by key.
        """
        self._make_steps_importable()
        path = config_path or os.path.relpath(self.default_config)
        with clean_errors():
            options.setdefault("run_name", check_run_file(path, self.default_config.parents[1]))
            options.setdefault("steps", settings_of_points(path))
        pipeline = super().with_options(config_path=path, execution_mode=_execution_mode(), **options)
        pipeline.run_file = path
        return pipeline

    def __call__(self, *args: Any, **kwargs: Any) -> PipelineRunResponse | None:
        """Runs the pipeline and prints what came out, or where that can be seen later."""
        self._make_steps_importable()
        with clean_errors(), replacing(schedule_name(self.run_file)):
            run = super().__call__(*args, **kwargs)
        with clean_errors():
            _print_outcome(run)
        return run

    def _make_steps_importable(self) -> None:
        """Add the project's folder to the path: ZenML adds it only while it imports the pipeline, not for the steps."""
        if (root := str(self.default_config.parents[1])) not in sys.path:
            sys.path.append(root)


def _execution_mode() -> ExecutionMode:
    """Stop at the first failure, where the orchestrator can; others only leave out what depends on the failed step."""
    supported = Client().active_stack.orchestrator.supported_execution_modes
    return ExecutionMode.FAIL_FAST if ExecutionMode.FAIL_FAST in supported else ExecutionMode.CONTINUE_ON_FAILURE


def _print_outcome(run: PipelineRunResponse | None) -> None:
    """Raises:
    UserError: the run failed where no exception reaches this terminal, as on a cluster; says in which step, and why.
    """
    # Steps have imported by now what these need; before, it would delay the answer to a mistake in the config.
    from posttrain.orchestration.finished_runs import read_report
    from posttrain.reporting.terminal import print_report

    if run is None:
        click.echo(
            "Scheduled. Its runs and what else there is: posttrain schedule list. The last outcome: posttrain report"
        )
    elif run.status.is_successful:
        print_report(read_report(run.id))
    elif run.status.is_finished:
        ended = [step for step in run.steps.values() if step.status.is_finished and not step.status.is_successful]
        why = [
            f"{step.name}: {(step.exception_info and step.exception_info.message) or step.status.value}"
            for step in ended
        ]
        raise UserError(f"run {run.name} {run.status.value}: {'; '.join(why) or 'before any step: see its log'}")
    else:
        click.echo(f"Run {run.name} goes on without this terminal. When it has ended: posttrain report {run.name}")


@contextmanager
def clean_errors() -> Iterator[None]:
    """Inside, a user's mistake is one line on the terminal, and no stack trace is logged."""
    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(_without_trace)
    try:
        yield
    except UserError as error:
        raise click.ClickException(str(error)) from error
    finally:
        for handler in handlers:
            handler.removeFilter(_without_trace)


def _without_trace(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], UserError):
        record.exc_info = None
    return True
