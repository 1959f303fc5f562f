"""The costs of a run, from the times of its steps in ZenML and what the steps have recorded."""

from __future__ import annotations

from typing import Any

from zenml.models import PipelineRunResponse, StepRunResponse
from zenml.utils.time_utils import utc_now

from posttrain.config import CostsSection
from posttrain.orchestration.running_step.step_usage import USAGE
from posttrain.reporting.run_costs import RunCosts, StepCost


def costs_of(run: PipelineRunResponse) -> RunCosts:
    """Return what a run has used until its end or, if it is in progress, until now."""
    prices = CostsSection.model_validate(settings_of(run).get("costs") or {})
    began, ended = run.start_time or run.created, run.end_time or utc_now()
    steps = {name: cost for name, step in run.steps.items() if (cost := _cost(step))}
    return RunCosts(
        seconds=max(0.0, (ended - began).total_seconds()),
        steps=steps,
        gpu_hour=prices.gpu_hour,
        currency=prices.currency,
    )


def settings_of(run: PipelineRunResponse) -> dict[str, Any]:
    """Return the settings that the file of a run has, without defaults."""
    return dict((run.config.parameters or {}).get("config") or {})


def _cost(step: StepRunResponse) -> StepCost | None:
    """Return what a step has used; None if it was taken from the cache, or has not begun."""
    if step.original_step_run_id or not step.start_time:
        return None
    seconds = max(0.0, ((step.end_time or utc_now()) - step.start_time).total_seconds())
    usage: Any = step.run_metadata.get(USAGE) or {}
    return StepCost(seconds=seconds, gpu_seconds=seconds * usage.get("n_gpus", 0), tokens=usage.get("tokens", 0))
