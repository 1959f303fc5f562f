"""Lines that are posted to the alerters of the stack."""

from __future__ import annotations

import logging
from typing import Literal

from zenml import get_step_context
from zenml.client import Client
from zenml.models import PipelineRunResponse

from posttrain.config import AlertsSection
from posttrain.storage.addresses import without_secrets
from posttrain.storage.plain_text import plain_text

logger = logging.getLogger(__name__)

Event = Literal["failed", "promoted", "refused", "unchanged"]


def alert(exception: BaseException) -> None:
    """Post which step failed and why, after the last retry.

    ZenML's own hook posts the whole stack trace and all parameters, and warns where there is no alerter.
    """
    context = get_step_context()
    post("failed", context.pipeline_run, f"step {context.step_run.name} failed: {exception}")


def post(event: Event, run: PipelineRunResponse, message: str) -> None:
    """Post a line about a run to every alerter of the stack, if the run's `alerts` section asks for it.

    An alerter that does not answer does not fail the run.
    """
    settings = ((run.config.parameters or {}).get("config") or {}).get("alerts") or {}
    if not getattr(AlertsSection.model_validate(settings), event):
        return
    pipeline = f"{run.pipeline.name}, " if run.pipeline else ""
    line = plain_text(without_secrets(f"{pipeline}run {run.name}: {message}"))
    for name, alerter in Client().active_stack.alerters.items():
        try:
            alerter.post(line)
        except Exception as error:  # noqa: BLE001 (each kind of alerter raises its own exceptions)
            logger.warning("Alerter %s was not told that %s (%s: %s)", name, line, type(error).__name__, error)
