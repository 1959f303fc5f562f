"""The history of a model: all its runs, with what each has found and cost."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import Any

from pydantic import ValidationError
from zenml.client import Client
from zenml.enums import ModelStages
from zenml.models import ModelVersionResponse, PipelineRunResponse, StepRunResponse

from posttrain.errors import UserError
from posttrain.orchestration.history.model_runs import all_runs, model_of
from posttrain.orchestration.model_versions.registry import judgement_of
from posttrain.orchestration.model_versions.rejections import LIFTED, REJECTION
from posttrain.orchestration.spent import costs_of
from posttrain.reporting.html import first_line
from posttrain.reporting.past_runs.nights import TAKEN_BACK, ModelHistory, Night
from posttrain.reporting.past_runs.run_record import RECORD, RunRecord

N_REASON_CHARS = 100
"""Of the reason of a failure."""
MANY = 10_000
"""The largest page that ZenML gives."""


def history_of(model: str | None, newest: int | None = None) -> ModelHistory:
    """Return the history of a model.

    Args:
        model: its name; None for the model of the last run.
        newest: number of newest runs to read; None for all.

    Raises:
        UserError: there are no runs of it; names the models that have some.
    """
    runs = all_runs()
    if model is None:
        first = next(runs, None)
        if first is None:
            raise UserError("no run yet: start one with `zenml pipeline run dpo_pipeline`")
        model = model_of(first)
    found = list(islice((run for run in all_runs() if model_of(run) == model), newest))
    if not found:
        known = ", ".join(sorted({model_of(run) for run in all_runs()})) or "none"
        raise UserError(f"{model}: no run of a model of this name (known: {known})")
    versions = _versions(model)
    promoted = _promoted(versions)
    nights = [_night(run, promoted) for run in reversed(found)]
    by_hand = [night for version in versions if (night := _taken_back(version)) and night.at >= nights[0].at]
    standing = [str(version.name) for version in versions if version.stage == ModelStages.PRODUCTION]
    return ModelHistory(
        model=model,
        nights=sorted([*nights, *by_hand], key=lambda night: night.at),
        champion=standing[-1] if standing else None,
        complete=newest is None or len(found) < newest,
    )


def _night(run: PipelineRunResponse, promoted: dict[str, str]) -> Night:
    """Return a run as the history shows it.

    Args:
        promoted: name of each promoted version, by the id of the run that promoted it.
    """
    record, at = _record(run), run.start_time or run.created
    if record:
        version = promoted.get(str(run.id), "") if record.outcome == "promoted" else ""
        note = f"version {version}" if version else ""
        return Night(run.name, at, record.outcome, record, record.costs, note)
    failed = () if run.status.is_successful or not run.status.is_finished else run.steps.values()
    ended = [step for step in failed if step.status.is_finished and not step.status.is_successful]
    note = "; ".join(f"{step.name} {_reason(step)}".strip() for step in ended)
    return Night(run.name, at, run.status.value, None, costs_of(run), note)


def _reason(step: StepRunResponse) -> str:
    message = step.exception_info.message if step.exception_info else None
    return first_line(message or "", N_REASON_CHARS)


def _record(run: PipelineRunResponse) -> RunRecord | None:
    """Return what a run has stored about its outcome; None if it did not get that far, or another release made it."""
    try:
        return RunRecord.model_validate(run.run_metadata.get(RECORD))
    except ValidationError:
        return None


def _versions(model: str) -> list[ModelVersionResponse]:
    try:
        return list(Client().list_model_versions(model=model, sort_by="asc:number", size=MANY, hydrate=True).items)
    except KeyError:  # nothing was judged yet
        return []


def _promoted(versions: Iterable[ModelVersionResponse]) -> dict[str, str]:
    judgements = [(version, judgement_of(version)) for version in versions]
    return {found.pipeline_run: str(version.name) for version, found in judgements if found and found.promoted}


def _taken_back(version: ModelVersionResponse) -> Night | None:
    """Return when and why a version was taken out of production; None if it was not."""
    rejection: Any = version.run_metadata.get(REJECTION)
    if not isinstance(rejection, dict) or "at" not in rejection:
        return None
    at = datetime.fromisoformat(str(rejection["at"])).replace(tzinfo=None)
    note = f"version {version.name} for {rejection.get('successor') or 'none'}: {rejection.get('reason')}"
    if LIFTED in rejection:
        note += f". Allowed again since: {rejection[LIFTED]}"
    return Night(str(version.name), at, TAKEN_BACK, note=note)
