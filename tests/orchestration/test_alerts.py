"""Which outcomes are posted to the alerters of the stack."""

from types import SimpleNamespace
from typing import Any

import pytest
from support.run_reports import make_report
from zenml.stack import Stack

from posttrain.evaluation.gate.looks import Look
from posttrain.orchestration.running_step.alerts import post
from posttrain.reporting.past_runs.run_record import record_of
from posttrain.reporting.run_costs import RunCosts


class Channel:
    """An alerter that keeps what it is told, or does not answer."""

    def __init__(self, answers: bool = True) -> None:
        self.told: list[str] = []
        self._answers = answers

    def post(self, message: str) -> None:
        if not self._answers:
            raise ConnectionError("no route")
        self.told.append(message)


def run(**alerts: bool) -> Any:
    config = {"config": {"alerts": alerts} if alerts else {}}
    return SimpleNamespace(
        name="night-1", pipeline=SimpleNamespace(name="p"), config=SimpleNamespace(parameters=config)
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ["failed"]),
        ({"promoted": True, "unchanged": True}, ["failed", "promoted", "unchanged"]),
        ({"failed": False, "refused": True}, ["refused"]),
    ],
)
def test_only_chosen_outcomes_are_posted(monkeypatch, settings, told):
    channel = Channel()
    monkeypatch.setattr(Stack, "alerters", {"chat": channel})
    for event in ("failed", "promoted", "refused", "unchanged"):
        post(event, run(**settings), event)
    assert channel.told == [f"p, run night-1: {event}" for event in told]


def test_a_silent_alerter_fails_nothing_and_the_next_is_told(monkeypatch, caplog):
    second = Channel()
    monkeypatch.setattr(Stack, "alerters", {"first": Channel(answers=False), "second": second})
    post("failed", run(), "step train_dpo failed: postgresql://u:hidden@h/db\x1b[2J")
    assert second.told == ["p, run night-1: step train_dpo failed: postgresql://h/db[2J"]
    assert "Alerter first was not told" in caplog.text


def test_the_line_of_an_outcome_has_reasons_and_costs():
    costs = RunCosts(seconds=200, steps={})
    assert record_of(make_report(), costs, None, Look()).line() == "promoted: because some text. 3 min 20 s"
    unchanged = record_of(make_report(), costs, "night-0", Look())
    assert unchanged.outcome == "unchanged"
    assert unchanged.line().endswith("the verdict is that of run night-0")
