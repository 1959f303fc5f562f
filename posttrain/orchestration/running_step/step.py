"""The `step` decorator of all steps: ZenML's, with its own cache keys, retries and alerts."""

import functools
from collections.abc import Callable
from typing import Any

import zenml
from zenml import get_step_context
from zenml.client import Client
from zenml.steps.step_context import StepContext

from posttrain import configure
from posttrain.compat.zenml_internals import without_caching_parameters, without_parameter_schema
from posttrain.errors import UserError
from posttrain.orchestration.artifact_sources import connect_artifact_sources
from posttrain.orchestration.caching.step_keys import cache_policy
from posttrain.orchestration.interruption import stopping_step
from posttrain.orchestration.running_step.alerts import alert
from posttrain.orchestration.running_step.step_usage import record_key_parts, record_usage

MISTAKE = f"{UserError.__module__}.{UserError.__name__}"


def step(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Return a ZenML step that is cached by the code it uses, does not retry a user's mistake, and alerts on failure."""
    configure()
    connect_artifact_sources()
    if function is None:
        return functools.partial(step, **options)
    options.setdefault("cache_policy", cache_policy(function.__module__))
    # None of zenml.step's overloads takes options that are not spelled out.
    created = zenml.step(_no_mistake_twice(function), on_failure=alert, **options)  # type: ignore[call-overload]
    return without_parameter_schema(without_caching_parameters(created))


def _no_mistake_twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that records what it used, and fails at once if the attempt before it ended with a `UserError`.

    ZenML and Kubernetes retry every failure, even a wrong config or a training that diverged.
    """

    @functools.wraps(function)
    def attempt(*args: Any, **kwargs: Any) -> Any:
        if mistake := _earlier_mistake():
            raise UserError(mistake)
        if not StepContext.is_active():
            return function(*args, **kwargs)
        context = get_step_context()
        with stopping_step(context.pipeline_run, context.step_run):
            record_key_parts(function.__module__)
            result = function(*args, **kwargs)
            record_usage(context.step_name, result)
            return result

    return attempt


def _earlier_mistake() -> str | None:
    """Return the message of the `UserError` that ended the previous attempt, or None."""
    if not StepContext.is_active() or (this := get_step_context().step_run).version == 1:
        return None
    earlier = Client().list_run_steps(
        pipeline_run_id=this.pipeline_run_id, name=this.name, version=this.version - 1, hydrate=True
    )
    ended = earlier.items[0].exception_info if earlier.items else None
    return ended.message if ended and ended.source == MISTAKE else None
