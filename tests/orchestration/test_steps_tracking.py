"""What MLflow is told through ZenML: how a lost step has ended, and what it could not take while it was away."""

import socket
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from zenml import pipeline, step
from zenml.client import Client

from posttrain.cli.main import main
from posttrain.orchestration.running_step.step_tracking import _keep, ended
from posttrain.tracking import Tracker, default_tracking_uri


@step(enable_cache=False)
def work() -> None:
    pass


@step(enable_cache=False)
def break_down() -> None:
    raise RuntimeError("the pod is gone")


@pipeline
def fragile() -> None:
    work()
    break_down(after="work")


@pytest.fixture(scope="module")
def lost() -> str:
    """The id of a run with a step that ended well and one that did not."""
    with pytest.raises(RuntimeError):
        fragile()
    return str(Client().list_pipeline_runs(pipeline="fragile", sort_by="desc:created").items[0].id)


def test_zenml_says_how_a_step_has_ended(lost: str) -> None:
    assert ended(lost, "work") == "FINISHED"
    assert ended(lost, "break_down") == "KILLED"
    assert ended(lost, "never_begun") == "KILLED"
    assert ended(str(uuid.uuid4()), "work") is None, "a run of another ZenML is none of our business"


def test_the_next_run_closes_the_runs_of_a_lost_machine(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, experiment = default_tracking_uri(), f"lost-{uuid.uuid4()}"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "pod-1")
        Tracker(uri, experiment, lost, "lost-run").stage("break_down").__enter__()  # and is killed
    with Tracker(uri, experiment, "next", "next-run", ended).parent("load_preferences"):
        pass
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert {run.info.run_name: run.info.status for run in found} == {
        "lost-run": "KILLED",
        "break_down of lost-run": "KILLED",
        "next-run": "FINISHED",
    }


def test_records_that_mlflow_rejected_are_sent_from_the_artifact_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = f"sent-{uuid.uuid4()}"
    with Tracker("http://127.0.0.1:9", experiment, "id-1", "demo-run").stage("train_dpo") as stage:
        stage.log_metrics({"train/loss": 0.5}, step=1)
        stage.log_text("a line\u2028and another", "note.txt")
    assert stage.unsent is not None
    store = Client().active_stack.artifact_store
    monkeypatch.setattr(type(store.config), "is_local", False)  # as if it were elsewhere
    _keep(stage.unsent)
    stage.unsent.unlink()  # with the pod
    kept = f"{store.path}/unsent/{stage.unsent.name}"
    assert f"The file is also stored at {kept}" in caplog.text

    done = CliRunner().invoke(main, ["send", kept], catch_exceptions=False)
    assert done.output == f"{kept}: 4 records are in MLflow\n"  # and the tag that they are late, and the end
    client = MlflowClient(default_tracking_uri())
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert {run.info.run_name: run.info.status for run in found} == {
        "demo-run": "FINISHED",
        "train_dpo of demo-run": "FINISHED",
    }
    (nested,) = (run for run in found if run.info.run_name == "train_dpo of demo-run")
    assert [(m.step, m.value) for m in client.get_metric_history(nested.info.run_id, "train/loss")] == [(1, 0.5)]
    assert [artifact.path for artifact in client.list_artifacts(nested.info.run_id)] == ["note.txt"]


def test_a_missing_file_is_reported_in_one_line() -> None:
    for place in ("no/such/file.jsonl", "s3://elsewhere/file.jsonl"):
        done = CliRunner().invoke(main, ["send", place])
        assert done.exit_code == 1
        assert done.output.startswith(f"Error: {place}: cannot be read")
        assert len(done.output.splitlines()) == 1
