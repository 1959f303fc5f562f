"""`step` as every file here uses it: ZenML's, with two promises more."""

import functools
from collections.abc import Callable
from typing import Any

import zenml
from zenml import get_step_context
from zenml.client import Client
from zenml.steps.step_context import StepContext

from posttrain import configure
from posttrain.errors import UserError
from posttrain.tracking import without_password

MISTAKE = f"{UserError.__module__}.{UserError.__name__}"


def step(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """ZenML's `step`; but what the user must mend is not tried again, and a failure is told to the stack's alerters."""
    configure()
    if function is None:
        return functools.partial(step, **options)
    # None of zenml.step's overloads takes options that are not spelled out.
    return zenml.step(_no_mistake_twice(function), on_failure=alert, **options)  # type: ignore[call-overload]


def alert(exception: BaseException) -> None:
    """Posts which step failed and why to every alerter of the stack, once no retry is left; says nothing without one.

    ZenML's own hook posts the whole stack trace and all parameters, and warns where there is no alerter.
    """
    context = get_step_context()
    reason = without_password(str(exception))
    message = f"{context.pipeline.name}, run {context.pipeline_run.name}: step {context.step_run.name} failed: {reason}"
    for alerter in Client().active_stack.alerters.values():
        alerter.post(message)


def _no_mistake_twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, except that an attempt after one that ended with a `UserError` ends with the same at once.

    ZenML and Kubernetes retry whatever failed, also a wrong config or a training that diverged.
    """

    @functools.wraps(function)
    def attempt(*args: Any, **kwargs: Any) -> Any:
        if mistake := _earlier_mistake():
            raise UserError(mistake)
        return function(*args, **kwargs)

    return attempt


def _earlier_mistake() -> str | None:
    """The message of the `UserError` that ended the attempt before this one."""
    if not StepContext.is_active() or (this := get_step_context().step_run).version == 1:
        return None
    earlier = Client().list_run_steps(
        pipeline_run_id=this.pipeline_run_id, name=this.name, version=this.version - 1, hydrate=True
    )
    ended = earlier.items[0].exception_info if earlier.items else None
    return ended.message if ended and ended.source == MISTAKE else None
