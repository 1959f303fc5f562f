"""The outcome of a finished run, read from ZenML."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
from pydantic import ValidationError
from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.models import PipelineRunResponse, StepRunResponse

from posttrain.errors import UserError
from posttrain.orchestration.spent import costs_of
from posttrain.reporting.run_report import RunReport
from posttrain.reporting.terminal import Report
from posttrain.reporting.verifier_summary import VerifierSummary

PIPELINE = "dpo_pipeline"


def read_report(run: str | UUID | None = None) -> Report:
    """Return the outcome of a run in the form that is printed.

    Args:
        run: its name or id; None for the last run of dpo_pipeline.

    Raises:
        UserError: there is no such run, or it did not succeed.
    """
    found = _finished(run)
    steps, about = found.steps, found.run_metadata
    newest = steps.get("choose_point") or steps.get("train_dpo") or steps["train_sft"]
    with _of_this_version(found):
        return Report(
            run=found.name,
            figures=output(steps["evaluate"]).load().figures,
            promotion=output(steps["promote"]).load(),
            data=output(steps["load_preferences"], "data_report").load(),
            benchmarks=output(steps["compare_benchmarks"]).load() if "compare_benchmarks" in steps else None,
            unchanged_since=str(about["figures_of"]) if about.get("outcome") == "unchanged" else None,
            sweep=output(newest, "sweep_outcome").load() if "choose_point" in steps else None,
            costs=costs_of(found),
            next_steps=tuple(_next_steps(found.name, newest)),
        )


def read_outcome(run: str | UUID | None = None) -> Report | VerifierSummary:
    """Return the outcome of a run of any pipeline in the form that is printed; arguments and errors as for `read_report`."""
    found = find_run(run)
    if "report_verifier" not in found.steps:
        return read_report(found.id)
    _check_successful(found)
    about = found.run_metadata
    return VerifierSummary(
        output(found.steps["report_verifier"]).load(),
        unchanged_since=str(about["figures_of"]) if about.get("outcome") == "unchanged" else None,
        next_steps=tuple(_next_steps(found.name, found.steps["train_verifier"])),
    )


def read_run_report(run: str | UUID | None = None) -> tuple[RunReport, pa.Table]:
    """Return the full report of a run, and the test pairs behind its figures.

    Raises:
        UserError: as `read_report`, or an older version made the run.
    """
    found = _finished(run)
    if "report" not in found.steps:
        raise UserError(
            f"run {found.name} has no report page, because an older version created it: run the pipeline again"
        )
    with _of_this_version(found):
        return output(found.steps["report"]).load(), output(found.steps["evaluate"]).load().pairs


@contextmanager
def _of_this_version(run: PipelineRunResponse) -> Iterator[None]:
    """Turn the error about a stored record that lacks a field of this version into a `UserError`."""
    try:
        yield
    except ValidationError as error:
        (first, *_) = error.errors()
        field = ".".join(map(str, first["loc"]))
        raise UserError(
            f"run {run.name} was stored by another version of posttrain, whose {error.title} this version cannot read ({field}: "
            f"{first['msg']}): run the pipeline again, or install that version"
        ) from error


def _finished(run: str | UUID | None) -> PipelineRunResponse:
    found = find_run(run)
    _check_successful(found)
    if "promote" not in found.steps:
        raise UserError(f"run {found.name} was not made by {PIPELINE}: name another run (`zenml pipeline runs list`)")
    return found


def _check_successful(run: PipelineRunResponse) -> None:
    if not run.status.is_successful:
        raise UserError(
            f"run {run.name} is {run.status.value} and has no outcome: name another run (`zenml pipeline runs list`)"
        )


def _next_steps(run: str, training: StepRunResponse) -> Iterator[str]:
    """Yield lines with paths, links and commands to inspect the run. The commands can be pasted into the current shell."""
    metadata = first_run(training).run_metadata
    checkpoint = output(training, "dpo_checkpoint" if training.name == "choose_point" else None)
    yield f"Model:   {shlex.quote(f'{checkpoint.uri}/files')}"
    yield f"Again:   {_command(f'posttrain report {run}')}"
    yield f"Page:    {_command(f'posttrain report {run} --html report.html')}"
    if "mlflow_serve" in metadata:
        yield f"Curves:  {_command(str(metadata['mlflow_serve']))}"
    if "mlflow" in metadata:
        yield f"         {metadata['mlflow']}"


def _command(line: str) -> str:
    """Return a command with its path, if PATH lacks it, and with ZenML's settings, so that it can be pasted as it is."""
    program, rest = line.split(" ", 1)
    scripts = Path(sys.executable).parent
    found = shutil.which(program)
    if found is None or Path(found).parent != scripts:
        path = scripts / program
        program = shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
    settings = f"ZENML_CONFIG_PATH={shlex.quote(config)} " if (config := os.environ.get("ZENML_CONFIG_PATH")) else ""
    return f"{settings if 'posttrain' in program else ''}{program} {rest}"


def find_run(run: str | UUID | None) -> PipelineRunResponse:
    """Return a run by its name or id; None: the last run of dpo_pipeline."""
    client = Client()
    if run is None:
        latest = client.list_pipeline_runs(pipeline=PIPELINE, sort_by="desc:created", size=1, hydrate=True)
        if not latest.items:
            raise UserError(f"no run of {PIPELINE}: start one with `zenml pipeline run {PIPELINE}`{_other_store()}")
        return latest.items[0]
    try:
        return client.get_pipeline_run(run)
    except KeyError as error:
        raise UserError(f"{run}: no such run: list them with `zenml pipeline runs list`{_other_store()}") from error


def _other_store() -> str:
    """Return which ZenML store was searched, and where the run may be instead: the store of `make` or of a plain `zenml`."""
    text = f". The ZenML store that was searched is {_searched()}"
    if made := _runs_of_make():
        text += f". {made}"
    elif "ZENML_CONFIG_PATH" in os.environ:
        text += " (set by ZENML_CONFIG_PATH). Runs that were started without this variable are in another store"
    return text


def note_of_other_store() -> str | None:
    """Return where earlier runs may be, if the ZenML store has none: without them everything is trained again."""
    made = _runs_of_make()
    if made is None or Client().list_pipeline_runs(size=1).items:
        return None
    return f"The ZenML store {_searched()} has no runs yet, so nothing is taken from its cache. {made}"


def _searched() -> Path:
    return Path(GlobalConfiguration().config_directory).resolve()


def _runs_of_make() -> str | None:
    """Return how to find the runs that were started with `make` in this folder; None if that store is used, or there is none."""
    of_make = Path(".zenml").resolve()
    if not of_make.is_dir() or of_make == _searched():
        return None
    return f"Runs that were started with `make` are in .zenml: set ZENML_CONFIG_PATH={shlex.quote(str(of_make))}"


def output(step: StepRunResponse, name: str | None = None) -> Any:
    """Return an artifact that a step made or took from the cache; without a name its only artifact."""
    (artifact,) = step.outputs[name] if name else next(iter(step.outputs.values()))
    return artifact


def first_run(step: StepRunResponse) -> StepRunResponse:
    """Return the step run that did the work: the original one if this one was cached."""
    return Client().get_run_step(step.original_step_run_id) if step.original_step_run_id else step


def maker_of(step: StepRunResponse) -> str | None:
    """Return the name of the run that a cached result is from; None if the step's own run has made it."""
    if step.original_step_run_id is None:
        return None
    return str(Client().get_pipeline_run(first_run(step).pipeline_run_id).name)
