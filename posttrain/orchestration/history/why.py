"""Compares a run with the one before it of the same model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from pydantic import ValidationError
from zenml.models import ArtifactVersionResponse, PipelineRunResponse, StepRunResponse

from posttrain.config import RunConfig
from posttrain.config.flatten import flatten
from posttrain.errors import UserError
from posttrain.orchestration.finished_runs import find_run, first_run, maker_of
from posttrain.orchestration.history.changed_rows import file_changes, row_changes
from posttrain.orchestration.history.model_runs import PIPELINES, model_of, runs_of
from posttrain.orchestration.history.step_reasons import code_changes, reasons_to_run
from posttrain.orchestration.spent import costs_of, settings_of
from posttrain.reporting.past_runs.explanation import Explanation, StepReason, differences
from posttrain.reporting.past_runs.run_record import RECORD
from posttrain.reporting.run_costs import duration

N_EARLIER = 20
"""Runs before a run in which the last result of a step is looked for."""
LOADING = ("load_preferences", "load_instructions", "load_pair_sets", "load_benchmarks")
NEVER_CACHED = frozenset(
    {
        "resolve_base",
        "import_checkpoint",
        *LOADING,
        "find_champion",
        "find_verifier",
        "conclude",
        "conclude_verifier",
        "collect",
    }
)
"""Steps that look for changes outside, or record the outcome."""


def explain_run(run: str | None) -> Explanation:
    """Return why each step of a run was computed or taken from the cache, and what changed since the run before it.

    Args:
        run: its name or id; None for the last run of dpo_pipeline.

    Raises:
        UserError: there is no such run, or another pipeline made it.
    """
    found = find_run(run)
    if found.pipeline is None or found.pipeline.name not in PIPELINES:
        raise UserError(
            f"run {found.name} is not one of {' or '.join(PIPELINES)}: name another run (`zenml pipeline runs list`)"
        )
    before = (other for other in runs_of(model_of(found)) if other.created < found.created)
    earlier = list(islice(before, N_EARLIER))
    last = next((other for other in earlier if other.status.is_successful), earlier[0] if earlier else None)
    steps = [_reason(step, earlier) for step in found.steps.values()]
    explanation = Explanation(found.name, model_of(found), _outcome(found), last.name if last else None, steps)
    return _compared(explanation, found, last) if last else explanation


def _compared(explanation: Explanation, run: PipelineRunResponse, last: PipelineRunResponse) -> Explanation:
    """Return an explanation with all that differs between two runs."""
    rows, files, notes = None, [], []
    old, new = (_output(other, "load_preferences", "preferences") for other in (last, run))
    if old and new:
        try:
            rows = row_changes(old, new)
            reports = [_output(other, "load_preferences", "data_report") for other in (last, run)]
            if reports[0] and reports[1]:
                files = file_changes(reports[0].load(), reports[1].load())
        except (OSError, UserError, ValidationError) as error:
            notes.append(f"The data cannot be compared: {error}")
    modules: dict[str, None] = {}
    packages: dict[str, tuple[str, str]] = {}
    for name in run.steps.keys() & last.steps.keys():
        of_step, versions = code_changes(run.steps[name], last.steps[name])
        modules |= dict.fromkeys(of_step)
        packages |= versions
    return replace(
        explanation,
        settings=differences(_settings(last), _settings(run)),
        rows=rows,
        notes=notes,
        files=[*files, *_base(last, run)],
        packages=dict(sorted(packages.items())),
        code=sorted(modules),
    )


def _reason(step: StepRunResponse, earlier: Sequence[PipelineRunResponse]) -> StepReason:
    """Return what happened to a step, and why."""
    if step.original_step_run_id:
        return StepReason(step.name, "cached", [f"the result of {maker_of(step)}"])
    state = "ran" if step.status.is_successful else step.status.value
    message = step.exception_info.message if step.exception_info else None
    failure = [message.splitlines()[0]] if message else []
    if step.name in NEVER_CACHED:
        return StepReason(step.name, state, failure or ["never cached"])
    with_result = (run.steps[step.name] for run in earlier if step.name in run.steps)
    last = next((other for other in with_result if other.status.is_successful), None)
    reasons = reasons_to_run(step, first_run(last)) if last else ["no earlier run of this model has a result of it"]
    return StepReason(step.name, state, [*failure, *reasons])


def _outcome(run: PipelineRunResponse) -> str:
    record = run.run_metadata.get(RECORD)
    outcome = str(record["outcome"]) if isinstance(record, dict) else run.status.value
    return f"{outcome}, {duration(costs_of(run).seconds)}"


def _settings(run: PipelineRunResponse) -> dict[str, str]:
    """Return all settings of a run with defaults, or those of its file if another release made it."""
    try:
        return flatten(RunConfig.model_validate(settings_of(run)).model_dump(mode="json"))
    except ValidationError:
        return flatten(settings_of(run))


def _base(last: PipelineRunResponse, run: PipelineRunResponse) -> list[str]:
    """Return a line about the base model, if its files or its chat template differ."""
    old, new = (_output(other, "resolve_base", "base_model") for other in (last, run))
    if not old or not new or old.content_hash == new.content_hash:
        return []
    digests = [
        str(found.run_metadata.get("revision") or found.run_metadata.get("digest", "-"))[:16] for found in (old, new)
    ]
    what = f"{digests[0]} -> {digests[1]}" if digests[0] != digests[1] else "another chat template"
    return [f"base model {new.run_metadata.get('id', '')}: {what}"]


def _output(run: PipelineRunResponse, step: str, name: str) -> ArtifactVersionResponse | None:
    made = run.steps[step].outputs.get(name) if step in run.steps else None
    return made[0] if made else None
