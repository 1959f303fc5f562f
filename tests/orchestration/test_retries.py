"""Retries, which ZenML does for any failure, and what is told to the alerter."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from zenml import pipeline
from zenml.alerter import BaseAlerter
from zenml.client import Client
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import ExecutionMode
from zenml.models import PipelineRunResponse
from zenml.stack import Stack

from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.models.base import resolve_base as found_base
from posttrain.models.checkpoint import Base
from steps import resolve_base as step_file


class Recorder(BaseAlerter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.posted: list[str] = []

    def post(self, message: str, params: Any = None) -> bool:
        self.posted.append(message)
        return True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The alerter of the active stack."""
    recorder = Recorder()
    monkeypatch.setattr(Stack, "alerters", {"recorder": recorder})
    return recorder


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Lets each attempt of a step end as told, the last one well; gives the numbers of those that began to work."""

    def end_with(*failures: Exception) -> list[int]:
        worked: list[int] = []

        def work(section: ModelSection) -> Base:
            worked.append(len(worked) + 1)
            if len(worked) <= len(failures):
                raise failures[len(worked) - 1]
            return found_base(section)

        monkeypatch.setattr(step_file.library, "resolve_base", work)
        return worked

    return end_with


def tried(n_retries: int) -> PipelineRunResponse:
    """A run of that step."""

    retry = StepRetryConfig(max_retries=n_retries) if n_retries else None

    @pipeline(enable_cache=False, retry=retry, execution_mode=ExecutionMode.FAIL_FAST)
    def of_one_step() -> None:
        step_file.resolve_base(ModelSection())

    run = of_one_step()
    assert run is not None
    return run


def test_a_user_s_mistake_is_not_retried(attempts: Callable[..., list[int]], recorder: Recorder) -> None:
    """ZenML makes three attempts, but the second and third end before any work; the alerter is told once."""
    mistake = UserError("the loss is nan: lower dpo.learning_rate")
    worked = attempts(mistake, mistake, mistake)
    with pytest.raises(UserError, match=r"lower dpo\.learning_rate"):
        tried(n_retries=2)
    assert worked == [1]
    run = Client().list_pipeline_runs(sort_by="desc:created", size=1).items[0]
    made = Client().list_run_steps(pipeline_run_id=run.id, exclude_retried=False)
    assert sorted(step.version for step in made.items) == [1, 2, 3]
    assert recorder.posted == [f"of_one_step, run {run.name}: step resolve_base failed: {mistake}"]


def test_other_failures_are_retried(attempts: Callable[..., list[int]], recorder: Recorder) -> None:
    worked = attempts(ConnectionError("the store did not answer"))
    assert tried(n_retries=1).status.is_successful
    assert worked == [1, 2]
    assert recorder.posted == []


def test_without_an_alerter_nothing_is_posted(
    attempts: Callable[..., list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    attempts(ConnectionError("the store did not answer"))
    with pytest.raises(ConnectionError):
        tried(n_retries=0)
    assert "did not answer" in caplog.text
    assert not re.search("alert|hook", caplog.text)
