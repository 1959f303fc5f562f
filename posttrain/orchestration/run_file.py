"""Checks of a run's YAML file that need ZenML; what ZenML itself would drop in silence or answer with a stack trace."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from zenml.client import Client
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
from zenml.config.schedule import Schedule
from zenml.config.step_configurations import StepConfigurationUpdate

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.orchestration.project import step_names

ONLY_IN_A_SWEEP = {"train_point", "choose_point"}
NOT_IN_A_SWEEP = {"train_dpo"}
N_CRON_FIELDS = {"kubernetes": {5}, "sagemaker": {6, 7}}


def check_run_file(path: str, root: Path) -> str:
    """The name for a run of a file, once all of the file is checked: the run's own settings and ZenML's.

    Args:
        root: the project whose steps the file may name.

    Raises:
        UserError: file, key, value and remedy.
    """
    config = load_config(path)
    document: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    try:
        checked = PipelineRunConfiguration.model_validate(document)
    except ValidationError as error:
        lines = (
            f"{path}: {'.'.join(map(str, e['loc']))}: {e['input']!r} is not allowed: {e['msg']}" for e in error.errors()
        )
        raise UserError("\n".join(lines)) from error
    if document.get("enable_cache"):
        raise UserError(
            f"{path}: enable_cache: true would also serve the data from the cache, though it may have changed: leave "
            "it out, steps are cached anyway (false runs all of them again)"
        )
    known = step_names(root) - (NOT_IN_A_SWEEP if config.sweep else ONLY_IN_A_SWEEP)
    for name, options in (document.get("steps") or {}).items():
        if name not in known:
            raise UserError(f"{path}: steps.{name}: unknown step (known: {', '.join(sorted(known))})")
        _check_step(f"{path}: steps.{name}", options or {})
    if checked.schedule:
        _check_schedule(f"{path}: schedule", checked.schedule)
    return checked.run_name or f"{config.name}-{{date}}-{{time}}"


def schedule_name(path: str | None) -> str | None:
    """The name of the schedule that a checked file asks for."""
    if path is None:
        return None
    document: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return str(document["schedule"]["name"]) if document.get("schedule") else None


def settings_of_points(path: str) -> dict[str, Any]:
    """What a checked file says of `train_point`, for every further point: ZenML numbers the runs of a step within a run."""
    document: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not (options := (document.get("steps") or {}).get("train_point")):
        return {}
    return {f"train_point_{i}": options for i in range(2, len(load_config(path).sweep_points()) + 1)}


def _check_schedule(where: str, schedule: Schedule) -> None:
    orchestrator = Client().active_stack.orchestrator
    if not orchestrator.config.is_schedulable:
        stack = Client().active_stack_model.name
        raise UserError(
            f"{where}: the orchestrator of stack {stack!r} cannot run schedules: choose one that can with -s "
            "(on Kubernetes, SageMaker, Vertex, AzureML, Airflow or Kubeflow), or drop the schedule"
        )
    if not schedule.name:
        raise UserError(
            f"{where}.name: missing: each time this file is run another schedule would be made beside the last one: add a name"
        )
    n_fields = len((schedule.cron_expression or "").split())
    if (wanted := N_CRON_FIELDS.get(orchestrator.flavor, {n_fields})) and n_fields not in wanted:
        example = "0 3 * * ? *" if 6 in wanted else "0 3 * * *"
        raise UserError(
            f"{where}.cron_expression: {schedule.cron_expression!r} has {n_fields} fields, flavor {orchestrator.flavor} takes "
            f"{' or '.join(map(str, sorted(wanted)))}: every night at three is {example!r}"
        )


def _check_step(where: str, options: dict[str, Any]) -> None:
    if "parameters" in options:
        raise UserError(f"{where}.parameters: not allowed: a step's settings go under `parameters: config:`")
    if unknown := options.keys() - StepConfigurationUpdate.model_fields.keys():
        known = ", ".join(sorted(StepConfigurationUpdate.model_fields.keys() - {"parameters"}))
        raise UserError(f"{where}.{min(unknown)}: unknown key (known: {known})")
    if options.get("enable_cache"):
        raise UserError(f"{where}.enable_cache: true is not allowed: steps that may be cached are; leave it out")
