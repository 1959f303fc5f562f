"""A run's YAML file, read and checked once: the run's own settings, and the keys that belong to ZenML.

ZenML would drop unknown steps silently and answer other mistakes with a stack trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from zenml.client import Client
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
from zenml.config.schedule import Schedule
from zenml.config.step_configurations import StepConfigurationUpdate

from posttrain.config import RunConfig
from posttrain.config.load import load_document
from posttrain.errors import UserError
from posttrain.orchestration.project import step_names

ONLY_IN_A_SWEEP = {"train_point", "choose_point"}
NOT_IN_A_SWEEP = {"train_dpo"}
ONLY_FOR_A_VERIFIER = {
    "train_verifier", "sample_answers", "evaluate_verifier", "promote_verifier", "report_verifier", "conclude_verifier",
}  # fmt: skip
NOT_FOR_A_VERIFIER = {
    "train_dpo", "score_reference", "generate", "load_pair_sets", "evaluate", "promote", "report", "conclude",
    "find_verifier", "load_benchmarks", "benchmark_model", "benchmark_champion", "compare_benchmarks",
}  # fmt: skip
N_CRON_FIELDS = {"kubernetes": {5}, "sagemaker": {6, 7}}


@dataclass(frozen=True)
class RunFile:
    """A checked run file."""

    path: str
    config: RunConfig
    steps: dict[str, Any]
    """ZenML's settings of each step."""
    run_name: str
    """ZenML fills in date and time."""
    schedule: str | None
    """The name of the schedule that the file asks for."""

    @property
    def steps_of_points(self) -> dict[str, Any]:
        """The settings of `train_point` for every further point of a sweep: ZenML numbers the calls of a step within a run."""
        if not (options := self.steps.get("train_point")):
            return {}
        return {f"train_point_{i}": options for i in range(2, len(self.config.sweep_points()) + 1)}


def read_run_file(path: str, root: Path) -> RunFile:
    """Return the content of a run file after checking all of it.

    Args:
        path: the YAML file.
        root: folder of the project whose steps the file may name.

    Raises:
        UserError: one line for each mistake, with file, key, value and remedy.
    """
    document, config = load_document(path)
    try:
        checked = PipelineRunConfiguration.model_validate(document)
    except ValidationError as error:
        lines = (
            f"{path}: {'.'.join(map(str, e['loc']))}: {e['input']!r} is not allowed: {e['msg']}" for e in error.errors()
        )
        raise UserError("\n".join(lines)) from error
    if document.get("enable_cache"):
        raise UserError(
            f"{path}: enable_cache: true is not allowed: it would also take the data from the cache, although the data may "
            "have changed. Remove the key: steps are cached by default (false runs all of them again)"
        )
    steps = document.get("steps") or {}
    absent = (NOT_IN_A_SWEEP if config.sweep else ONLY_IN_A_SWEEP) | (
        NOT_FOR_A_VERIFIER if config.verifier else ONLY_FOR_A_VERIFIER
    )
    known = step_names(root) - absent
    for name, options in steps.items():
        if name not in known:
            raise UserError(f"{path}: steps.{name}: unknown step (known: {', '.join(sorted(known))})")
        _check_step(f"{path}: steps.{name}", options or {})
    if checked.schedule:
        _check_schedule(f"{path}: schedule", checked.schedule)
    run_name = checked.run_name or f"{config.name}-{{date}}-{{time}}"
    return RunFile(path, config, steps, run_name, checked.schedule.name if checked.schedule else None)


def _check_schedule(where: str, schedule: Schedule) -> None:
    orchestrator = Client().active_stack.orchestrator
    if not orchestrator.config.is_schedulable:
        stack = Client().active_stack_model.name
        raise UserError(
            f"{where}: the orchestrator of stack {stack!r} cannot run schedules: choose a stack that can with -s "
            "(Kubernetes, SageMaker, Vertex, AzureML, Airflow or Kubeflow), or remove the schedule"
        )
    if not schedule.name:
        raise UserError(
            f"{where}.name: missing: without a name every run of this file would add another schedule: add one"
        )
    n_fields = len((schedule.cron_expression or "").split())
    if (wanted := N_CRON_FIELDS.get(orchestrator.flavor, {n_fields})) and n_fields not in wanted:
        example = "0 3 * * ? *" if 6 in wanted else "0 3 * * *"
        raise UserError(
            f"{where}.cron_expression: {schedule.cron_expression!r} has {n_fields} fields, flavor {orchestrator.flavor} needs "
            f"{' or '.join(map(str, sorted(wanted)))}: for every night at three write {example!r}"
        )


def _check_step(where: str, options: dict[str, Any]) -> None:
    if "parameters" in options:
        raise UserError(f"{where}.parameters: not allowed: put a step's settings under `parameters: config:`")
    if unknown := options.keys() - StepConfigurationUpdate.model_fields.keys():
        known = ", ".join(sorted(StepConfigurationUpdate.model_fields.keys() - {"parameters"}))
        raise UserError(f"{where}.{min(unknown)}: unknown key (known: {known})")
    if "cache_policy" in options:
        raise UserError(
            f"{where}.cache_policy: not allowed: it would replace the policy that re-runs the step when its code changes. "
            "Put it at the top level of the file, where both policies are merged"
        )
    if options.get("enable_cache"):
        raise UserError(
            f"{where}.enable_cache: true is not allowed: remove the key; steps are cached wherever that is safe"
        )
