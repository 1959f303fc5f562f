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
from posttrain.orchestration.caching.step_keys import cache_policy
from posttrain.orchestration.interruption import stopping_step
from posttrain.storage.addresses import without_secrets

MISTAKE = f"{UserError.__module__}.{UserError.__name__}"


def step(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Return a ZenML step that is cached by the code it uses, does not retry a user's mistake, and alerts on failure."""
    configure()
    if function is None:
        return functools.partial(step, **options)
    options.setdefault("cache_policy", cache_policy(function.__module__))
    # None of zenml.step's overloads takes options that are not spelled out.
    created = zenml.step(_no_mistake_twice(function), on_failure=alert, **options)  # type: ignore[call-overload]
    return without_parameter_schema(without_caching_parameters(created))


def alert(exception: BaseException) -> None:
    """Post which step failed and why to every alerter of the stack, after the last retry; do nothing without an alerter.

    ZenML's own hook posts the whole stack trace and all parameters, and warns where there is no alerter.
    """
    context = get_step_context()
    reason = without_secrets(str(exception))
    message = f"{context.pipeline.name}, run {context.pipeline_run.name}: step {context.step_run.name} failed: {reason}"
    for alerter in Client().active_stack.alerters.values():
        alerter.post(message)


def _no_mistake_twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that fails at once if the attempt before it ended with a `UserError`, with the same error.

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
            return function(*args, **kwargs)

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
