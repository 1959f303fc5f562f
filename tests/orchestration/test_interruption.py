"""A run that is stopped or killed at any moment: the same command continues and ends as if nothing had happened."""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from support.paths import ROOT
from zenml.client import Client
from zenml.enums import ExecutionStatus, ModelStages
from zenml.models import PipelineRunResponse

from posttrain.orchestration.running_step.step_training import CHECKPOINTS
from posttrain.storage.processes import has_died, this_process
from posttrain.storage.scratch import OWNER, scratch_folder, sweep

STEPS = [
    "load_preferences", "tokenise", "train_sft", "score_reference", "train_dpo", "generate", "evaluate", "promote", "report",
    "conclude",
]  # fmt: skip
N_KILLS = int(os.environ.get("POSTTRAIN_TEST_KILLS", "1"))
"""Number of times that the run is killed in each step; 20 take hours."""

RUN = """
import os, signal, sys, threading
from posttrain.evaluation.gate import decision
from posttrain.evaluation.gate.decision import Promotion
from zenml.orchestrators.step_runner import StepRunner
from zenml.models import PipelineRunResponse

decision.decide = lambda figures, *_: Promotion(promoted=True, opponent=figures.opponent, reasons=["well done"])
run = StepRunner.run

def killed(self, *args, **kwargs):
    if self.configuration.name == sys.argv[2]:
        threading.Timer(float(sys.argv[3]), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    return run(self, *args, **kwargs)

StepRunner.run = killed
from pipelines.dpo import dpo_pipeline
dpo_pipeline.with_options(config_path=sys.argv[1])()
"""


class Command:
    """One config, run in processes of their own with a folder for temporary files of their own."""

    def __init__(self, folder: Path, tiny_folder: Path, n_steps: int) -> None:
        self.name = f"cut-{uuid.uuid4().hex[:8]}"
        config: dict[str, Any] = {
            "name": self.name,
            "model": {"base": str(tiny_folder), "precision": "fp32"},
            "data": {"sources": [{"path": "demo", "limit": 120}], "test_size": 0.2},
            "sft": {"max_steps": n_steps, "batch_size": 2, "max_length": 64},
            "dpo": {"max_steps": n_steps, "batch_size": 2, "max_length": 64, "max_prompt_length": 48},
            "evaluation": {"generations": {"n": 2, "max_new_tokens": 4}, "n_bootstrap": 100},
            "checkpoints": {"interval_s": 0},
            "tracking": {"experiment": self.name},
        }
        self.file, self.temporary = folder / "run.yaml", Path(tempfile.mkdtemp(dir=folder))
        self.file.write_text(yaml.safe_dump({"parameters": {"config": config}}))

    def start(self, step: str = "", after_s: float = 0.0) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", RUN, str(self.file), step, str(after_s)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **streams)

    def runs(self) -> list[PipelineRunResponse]:
        found = Client().list_pipeline_runs(size=200, sort_by="desc:created", hydrate=True).items
        return [run for run in found if run.name.startswith(self.name)]

    def mlflow_status(self) -> list[str]:
        client = MlflowClient()
        experiment = client.get_experiment_by_name(self.name)
        assert experiment is not None
        return [run.info.status for run in client.search_runs([experiment.experiment_id])]


def finished(process: "subprocess.Popen[str]", code: int = 0) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == code, output
    return output


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)


def digest(run: PipelineRunResponse) -> str:
    return str(run.steps["train_dpo"].outputs["dpo_checkpoint"][0].run_metadata["digest"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak)]
)
def test_a_stopped_training_is_saved_and_the_same_command_continues(
    tmp_path: Path, tiny_folder: Path, number: signal.Signals, code: int
) -> None:
    command = Command(tmp_path, tiny_folder, n_steps=40)
    store = Path(Client().active_stack.artifact_store.path, CHECKPOINTS)
    before = set(store.glob("*")) if store.exists() else set()
    process = command.start()
    wait_for(process, lambda: bool(store.exists() and set(store.glob("*")) - before))  # the first training checkpoint
    process.send_signal(number)
    output = finished(process, code)
    assert "Traceback" not in output
    (step,) = re.findall(
        rf"Run {command.name}-\S+: SFT stopped at step (\d+), saved\. The same command continues", output
    )
    (run,) = command.runs()
    assert run.status == ExecutionStatus.STOPPED
    assert run.steps["train_sft"].status == ExecutionStatus.STOPPED
    assert set(command.mlflow_status()) == {"KILLED"}

    output = finished(command.start())
    assert f"SFT goes on from step {step}" in output
    assert command.runs()[0].status == ExecutionStatus.COMPLETED
    assert not list(command.temporary.iterdir())


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, tiny_folder: Path) -> None:
    command = Command(tmp_path, tiny_folder, n_steps=2)
    process = command.start("load_preferences", 300.0)
    wait_for(process, lambda: bool(command.runs()))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in finished(process, 130)


@pytest.mark.soak
@pytest.mark.timeout(3600 * N_KILLS)
def test_a_run_that_is_killed_in_every_step_ends_as_an_undisturbed_one(tmp_path: Path, tiny_folder: Path) -> None:
    undisturbed = Command(tmp_path, tiny_folder, n_steps=6)
    finished(undisturbed.start())
    (whole,) = undisturbed.runs()
    seconds = {
        name: (step.end_time - step.start_time).total_seconds()
        for name, step in whole.steps.items()
        if step.end_time and step.start_time
    }
    chance = random.Random(0)
    store = Path(Client().active_stack.artifact_store.path, CHECKPOINTS)
    for _ in range(N_KILLS):
        command = Command(tmp_path, tiny_folder, n_steps=6)
        # ZenML's cache would give it the results of the undisturbed run.
        for step in whole.steps.values():
            Client().update_step_run(step.id, cache_expires_at=step.start_time)
        for step_name in STEPS:
            process = command.start(step_name, chance.uniform(0, seconds[step_name]))
            process.communicate(timeout=500)
            assert process.returncode in (0, -signal.SIGKILL)
        finished(command.start())
        last, *others = command.runs()
        assert last.status == ExecutionStatus.COMPLETED
        assert digest(last) == digest(whole)
        assert all(run.status.is_finished for run in others)
        assert "RUNNING" not in command.mlflow_status()
        (champion,) = Client().list_model_versions(model=command.name, stage=ModelStages.PRODUCTION).items
        assert champion.stage == ModelStages.PRODUCTION
        assert not list(command.temporary.iterdir())
        assert not list(store.glob("*"))
        whole = last


def test_folders_of_dead_processes_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    host = this_process().rsplit(":", 2)[0]
    for name, owner in {"dead": f"{host}:1:5", "elsewhere": "other:1:5", "torn": "", "alive": this_process()}.items():
        (tmp_path / f"posttrain-run-{name}").mkdir()
        (tmp_path / f"posttrain-run-{name}" / OWNER).write_text(owner)
    (tmp_path / "posttrain-run-unknown").mkdir()
    os.utime(tmp_path / "posttrain-run-unknown", (0, 0))
    (tmp_path / "of-another-program").mkdir()
    with scratch_folder() as folder:
        assert Path(tempfile.mkdtemp()).parent == folder
        code = "import tempfile; print(tempfile.gettempdir())"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == str(folder)
    left = {path.name.removeprefix("posttrain-run-") for path in tmp_path.iterdir()}
    assert left == {"elsewhere", "torn", "alive", "of-another-program"}
    sweep(tmp_path / "no such folder")
    assert not has_died(this_process())
