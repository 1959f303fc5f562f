"""Schedules: made, brought up to date, paused, deleted, and never two runs at once."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunUpdate, ScheduleUpdate
from zenml.orchestrators import LocalOrchestrator
from zenml.orchestrators.local.local_orchestrator import LocalOrchestratorConfig
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils.time_utils import utc_now

from pipelines.dpo import dpo_pipeline
from posttrain.cli.main import main
from posttrain.errors import UserError
from posttrain.orchestration.checked_pipeline import _print_outcome
from posttrain.orchestration.run_file import N_CRON_FIELDS
from posttrain.orchestration.stacks import overlap as _overlap
from posttrain.orchestration.stacks import schedules

pytestmark = pytest.mark.slow

CRON: dict[str, dict[str, Any]] = {}
"""What stands in the cluster, by the name that it gave."""


@pytest.fixture(autouse=True)
def _the_stack_can_schedule(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local orchestrator takes schedules, as one of a cluster would: they are written into `CRON`."""

    def submit(self: Any, snapshot: Any, **_: Any) -> Any:
        if "refused" in CRON:
            raise RuntimeError("the cluster refused")
        name = f"cron-{len(CRON)}"
        CRON[name] = {"cron": snapshot.schedule.cron_expression, "active": True, "snapshot": snapshot}
        return SimpleNamespace(metadata={"cron_job": name}, wait_for_completion=None)

    def update(self: Any, schedule: Any, update: Any) -> None:
        CRON[schedule.run_metadata["cron_job"]]["active"] = update.active

    monkeypatch.setattr(LocalOrchestratorConfig, "is_schedulable", True)
    monkeypatch.setattr(LocalOrchestrator, "submit_pipeline", submit)
    monkeypatch.setattr(LocalOrchestrator, "update_schedule", update, raising=False)
    monkeypatch.setattr(
        LocalOrchestrator,
        "delete_schedule",
        lambda self, schedule: CRON.pop(schedule.run_metadata.get("cron_job"), None),
    )
    yield
    CRON.clear()
    for schedule in schedules.every():
        Client().delete_schedule(schedule.id)


def scheduled(folder: Path, cron: str = "0 3 * * *", name: str | None = "nightly", **config: Any) -> None:
    """What `zenml pipeline run dpo_pipeline -c FILE` does with a file that has a schedule."""
    path = folder / "nightly.yaml"
    schedule = {"cron_expression": cron} | ({"name": name} if name else {})
    path.write_text(yaml.safe_dump({"schedule": schedule, "parameters": {"config": config}}))
    assert dpo_pipeline.with_options(config_path=str(path))() is None


def begun(name: str = "nightly") -> Any:
    """A run of the schedule, as the cluster would start it."""
    (entry,) = CRON.values()
    run = create_placeholder_run(snapshot=entry["snapshot"], orchestrator_run_id=str(len(CRON)) + str(utc_now()))
    return Client().zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.RUNNING))


def test_running_the_file_again_updates_the_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scheduled(tmp_path, seed=1)
    scheduled(tmp_path, "30 4 * * *", seed=2)
    (schedule,) = schedules.every()
    assert (schedule.name, schedule.cron_expression, schedule.active) == ("nightly", "30 4 * * *", True)
    (entry,) = CRON.values()
    assert entry["cron"] == "30 4 * * *"
    assert entry["snapshot"].pipeline_configuration.parameters["config"]["seed"] == 2
    assert "Schedule nightly is up to date." in capsys.readouterr().out


def test_a_paused_schedule_stays_paused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scheduled(tmp_path)
    schedules.set_active(schedules.find("nightly"), False)
    scheduled(tmp_path, seed=2)
    assert not schedules.find("nightly").active
    assert [entry["active"] for entry in CRON.values()] == [False]
    assert "posttrain schedule resume nightly" in capsys.readouterr().out


def test_a_failed_update_keeps_the_old_schedule(tmp_path: Path) -> None:
    scheduled(tmp_path)
    before, standing = schedules.find("nightly"), dict(CRON)
    CRON["refused"] = {}
    with pytest.raises(RuntimeError, match="refused"):
        scheduled(tmp_path, "0 5 * * *")
    del CRON["refused"]
    assert [schedule.id for schedule in schedules.every()] == [before.id]
    assert schedules.find("nightly").cron_expression == "0 3 * * *"
    assert standing == CRON


def test_a_run_that_failed_on_a_cluster_names_step_and_reason() -> None:
    """The engine of a cluster raises nothing here, but ZenML has what its pods raised."""
    nan = SimpleNamespace(message="the loss is nan")
    step = SimpleNamespace(name="train_dpo", status=ExecutionStatus.FAILED, exception_info=nan)
    run: Any = SimpleNamespace(name="dpo-1", status=ExecutionStatus.FAILED, steps={"train_dpo": step})
    with pytest.raises(UserError, match="run dpo-1 failed: train_dpo: the loss is nan"):
        _print_outcome(run)


def test_an_interrupted_update_is_completed(tmp_path: Path) -> None:
    """Killed after the earlier schedule had stepped aside: it still fires, so the next update removes it."""
    scheduled(tmp_path)
    aside = ScheduleUpdate(name="nightly (replaced)")
    Client().zen_store.update_schedule(schedules.find("nightly").id, aside)
    scheduled(tmp_path, "0 5 * * *")
    assert [schedule.name for schedule in schedules.every()] == ["nightly"]
    assert [entry["cron"] for entry in CRON.values()] == ["0 5 * * *"]


def test_a_schedule_with_a_run_in_progress_is_not_changed(tmp_path: Path) -> None:
    """Its token is its schedule's, and its pods are the CronJob's: an update, a pause and the end wait for it."""
    scheduled(tmp_path)
    run = begun()
    with pytest.raises(click.ClickException, match=f"run {run.name} is in progress"):
        scheduled(tmp_path, "0 5 * * *")
    for change in (lambda found: schedules.set_active(found, False), schedules.delete):
        with pytest.raises(UserError, match=f"zenml pipeline runs stop {run.name}"):
            change(schedules.find("nightly"))
    assert [(entry["cron"], entry["active"]) for entry in CRON.values()] == [("0 3 * * *", True)]
    assert schedules.find("nightly").active


def test_commands(tmp_path: Path) -> None:
    def posttrain(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["schedule", *arguments])
        assert done.exit_code == (1 if "Error" in done.output else 0), done.output
        return done.output

    scheduled(tmp_path)
    assert posttrain("list") == "nightly  0 3 * * *  active  no run yet\n"
    run = begun()
    assert posttrain("list") == f"nightly  0 3 * * *  active  last run {run.name}: running\n"
    Client().zen_store.update_run(run.id, PipelineRunUpdate(status=ExecutionStatus.FAILED))
    assert posttrain("pause", "nightly") == "Schedule nightly is paused.\n"
    assert [entry["active"] for entry in CRON.values()] == [False]
    assert "paused" in posttrain("list")
    posttrain("resume", "nightly")
    assert [entry["active"] for entry in CRON.values()] == [True]
    posttrain("delete", "nightly")
    assert CRON == {}
    assert posttrain("list") == ""
    assert posttrain("pause", "nightly") == "Error: schedule 'nightly': no such schedule (existing: none)\n"


@pytest.mark.parametrize(
    ("silent", "leaves"), [(timedelta(minutes=1), True), (timedelta(hours=1), False)], ids=["alive", "dead"]
)
def test_a_scheduled_run_ends_while_the_previous_one_is_in_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: timedelta, leaves: bool
) -> None:
    """The earlier one is `running` either way; one that has said nothing for an hour lost its machine."""
    scheduled(tmp_path)
    earlier, later = begun(), begun()
    monkeypatch.setattr(_overlap, "get_step_context", lambda: SimpleNamespace(pipeline_run=later))
    monkeypatch.setattr(_overlap, "utc_now", lambda: utc_now() + silent)
    if leaves:
        with pytest.raises(UserError, match=f"run {earlier.name} of schedule nightly is still in progress"):
            _overlap.leave_to_earlier_run()
    else:
        _overlap.leave_to_earlier_run()
    monkeypatch.setattr(_overlap, "get_step_context", lambda: SimpleNamespace(pipeline_run=earlier))
    _overlap.leave_to_earlier_run()  # the earlier one does not leave to the later one


def test_a_schedule_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match=r"schedule\.name: missing: without a name"):
        scheduled(tmp_path, name=None)
    assert CRON == {}


@pytest.mark.parametrize(
    ("flavor", "cron", "message"),
    [
        (
            "sagemaker",
            "0 3 * * *",
            "has 5 fields, flavor local needs 6 or 7: for every night at three write '0 3 * * ? *'",
        ),
        ("kubernetes", "0 3 * * ? *", "has 6 fields, flavor local needs 5: for every night at three write '0 3 * * *'"),
    ],
)
def test_a_cron_expression_for_another_orchestrator_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str, cron: str, message: str
) -> None:
    """Before an image is built, and not by the engine afterwards."""
    monkeypatch.setitem(N_CRON_FIELDS, "local", N_CRON_FIELDS[flavor])
    with pytest.raises(click.ClickException, match=re.escape(message)):
        scheduled(tmp_path, cron)
    assert CRON == {}
