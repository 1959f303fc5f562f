"""MLflow tracking with real stores: SQLite, and a server that is killed and restarted."""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.servers import Server

from posttrain import tracking
from posttrain.config.flatten import flatten
from posttrain.errors import UserError
from posttrain.tracking import STAGE_TAG, DatasetOrigin, Tracker, published_metrics, tracked_stage
from posttrain.tracking.mlflow_registry import ModelRegistry, registry_error
from posttrain.tracking.runs import StepRun


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a SQLite store. It is created once, because MLflow's migrations take seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/deeper/mlflow.db"
    with Tracker(uri, "first", "first", "first").parent("load_preferences"):
        pass
    return uri


@pytest.fixture
def tracker(store: str, request: pytest.FixtureRequest) -> Tracker:
    return Tracker(store, experiment=request.node.name, pipeline_run="id-1", run_name="demo-run")


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def runs(tracker: Tracker, uri: str | None = None) -> dict[str, Any]:
    """Return the active runs of a tracker's experiment by name; fails if two have the same name."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or tracker.uri)
    experiment = client.get_experiment_by_name(tracker.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    by_name = {run.info.run_name: run for run in found}
    assert len(by_name) == len(found), "a run is there twice"
    return by_name


def states(tracker: Tracker, uri: str | None = None) -> dict[str, str]:
    return {name: run.info.status for name, run in runs(tracker, uri).items()}


def history(uri: str, run: Any, metric: str) -> list[tuple[int, Any]]:
    """Return (step, value) of every stored point, including duplicates."""
    from mlflow import MlflowClient

    return sorted((m.step, m.value) for m in MlflowClient(uri).get_metric_history(run.info.run_id, metric))


def read_unsent(path: Path | None) -> list[dict[str, Any]]:
    """Return the records in a file of unsent records, whose first line identifies the run."""
    assert path is not None
    run, *records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert run["run_name"] == "demo-run"
    return records


def unsent_metrics(path: Path | None) -> list[tuple[int, float]]:
    """Return (step, value) of every metric in a file of unsent records."""
    return [(record["step"], record["value"]) for record in read_unsent(path) if record["kind"] == "metric"]


def test_run_has_one_parent_and_a_nested_run_per_stage(tracker: Tracker) -> None:
    with tracker.parent("load_preferences"):
        assert states(tracker) == {"demo-run": "RUNNING"}
    with tracker.stage("train_sft"):
        assert states(tracker) == {"demo-run": "RUNNING", "train_sft of demo-run": "RUNNING"}
    with tracker.stage("train_dpo"):
        pass

    assert set(states(tracker).values()) == {"FINISHED"}
    nested = runs(tracker)["train_dpo of demo-run"]
    assert nested.data.tags["mlflow.parentRunId"] == runs(tracker)["demo-run"].info.run_id


def test_a_second_pipeline_run_has_its_own_parent(tracker: Tracker) -> None:
    other = Tracker(tracker.uri, tracker.experiment, pipeline_run="id-2", run_name="other-run")
    with tracker.stage("train_dpo"), other.stage("train_dpo"):
        pass

    assert set(states(tracker)) == {"demo-run", "train_dpo of demo-run", "other-run", "train_dpo of other-run"}


def test_a_deleted_experiment_is_restored(tracker: Tracker, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracker.uri)
    deleted = client.create_experiment(tracker.experiment)
    client.delete_experiment(deleted)
    with tracker.parent("load_preferences"):
        pass
    assert states(tracker) == {"demo-run": "FINISHED"}
    assert client.get_experiment(deleted).lifecycle_stage == "active"
    assert f"the deleted experiment {tracker.experiment} is restored" in capsys.readouterr().out


def test_an_exception_fails_the_stage_and_its_parent(tracker: Tracker) -> None:
    with pytest.raises(ValueError, match="loss is NaN"), tracker.stage("train_dpo"):
        raise ValueError("loss is NaN")
    assert states(tracker) == {"demo-run": "FAILED", "train_dpo of demo-run": "FAILED"}

    with tracker.parent("evaluate"):
        pass
    assert states(tracker)["demo-run"] == "FAILED", "another step's success does not mend the run"


def test_stage_fail_marks_the_nested_run_only(tracker: Tracker) -> None:
    with tracker.stage("train_point") as stage:
        stage.fail("the loss is nan")
        assert states(tracker)["train_point of demo-run"] == "RUNNING"
    assert states(tracker) == {"demo-run": "FINISHED", "train_point of demo-run": "FAILED"}
    assert runs(tracker)["train_point of demo-run"].data.tags["failure"] == "the loss is nan"


def test_a_retry_replaces_the_run_it_retries(tracker: Tracker) -> None:
    def fail() -> None:
        with tracker.stage("train_dpo") as stage:
            stage.log_metrics({"train/loss": 9.0}, step=1)
            raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        fail()
    with tracker.stage("train_dpo") as stage:
        stage.log_metrics({"train/loss": 0.5}, step=1)

    assert states(tracker) == {"demo-run": "FINISHED", "train_dpo of demo-run": "FINISHED"}
    assert history(tracker.uri, runs(tracker)["train_dpo of demo-run"], "train/loss") == [(1, 0.5)]


@pytest.mark.slow
def test_runs_of_a_killed_process_are_closed(tracker: Tracker) -> None:
    script = (
        "import sys, time; from posttrain.tracking import Tracker\n"
        "with Tracker(*sys.argv[1:]).stage('train_dpo'): print('open', flush=True); time.sleep(600)\n"
    )
    arguments = [tracker.uri, tracker.experiment, "id-0", "killed-run"]
    child = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie, which has died too

    assert set(states(tracker).values()) == {"RUNNING"}
    with tracker.parent("load_preferences"):
        pass
    child.wait()
    child.stdout.close()
    assert states(tracker) == {"killed-run": "KILLED", "train_dpo of killed-run": "KILLED", "demo-run": "FINISHED"}


@pytest.mark.parametrize(("told", "state"), [("KILLED", "KILLED"), ("FINISHED", "FINISHED"), (None, "RUNNING")])
def test_state_of_a_step_on_another_host_comes_from_ended(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, told: str | None, state: str
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "pod-1")
        Tracker(tracker.uri, tracker.experiment, "id-0", "lost-run").stage("train_dpo").__enter__()  # and never ends
    asked = []

    def ended(pipeline_run: str, step: str) -> str | None:
        asked.append((pipeline_run, step))
        return told

    with Tracker(tracker.uri, tracker.experiment, "id-1", "demo-run", ended).parent("load_preferences"):
        pass
    assert states(tracker) == {"lost-run": state, "train_dpo of lost-run": state, "demo-run": "FINISHED"}
    assert set(asked) == {("id-0", "train_dpo")}


@pytest.mark.slow
def test_resumed_training_records_its_history_once(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed training records the 5,000 logs of the killed attempt again, then continues."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    def tell(stage: tracking.TrackedStage, logs: range) -> None:
        callback = tracking.metrics_callback(stage)
        for step in logs:
            state = TrainerState(global_step=step, is_world_process_zero=True)
            log = {"loss": step / 10, "grad_norm": 1.0, "learning_rate": 1e-6, "epoch": step / 5000}
            callback.on_log(TrainingArguments(), state, TrainerControl(), logs=log)

    tracker.stage("train_dpo").__enter__().log_metrics({"train/loss": 0.1}, step=1)  # and is killed
    all_told, was_told, deliver = threading.Event(), [], StepRun.deliver

    def deliver_late(run: StepRun, records: list[Any]) -> None:
        was_told.append(all_told.wait(timeout=60))  # fails only if the work waits for MLflow
        deliver(run, records)

    monkeypatch.setattr(tracked_stage, "SEND_EVERY_S", 0)
    with tracker.stage("train_dpo") as stage:
        monkeypatch.setattr(StepRun, "deliver", deliver_late)
        tell(stage, range(1, 5001))
        all_told.set()
        tell(stage, range(5001, 5003))
    assert stage.unsent is None
    assert was_told
    assert all(was_told)
    run = runs(tracker)["train_dpo of demo-run"]
    for metric, factor in (("train/loss", 0.1), ("train/epoch", 1 / 5000)):
        points = history(tracker.uri, run, metric)
        assert [step for step, _ in points] == list(range(1, 5003)), "gaps or doubles"
        assert all(value == pytest.approx(step * factor) for step, value in points)


def test_parameters_are_flat_and_truncated_and_keep_their_first_value(
    tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker.parent("load_preferences") as stage:
        stage.log_params({"dpo": {"beta": 0.1, "start": None}, "data": {"sources": [{"path": "demo"}]}})
        stage.log_params({"note": "x" * 7000, "odd?name": True, "losses": ["sigmoid", "sft"]})
    with tracker.parent("evaluate") as stage:
        stage.log_params({"dpo": {"beta": 0.5}, "data.digest": "ab12"})

    assert runs(tracker)["demo-run"].data.params == {
        "dpo.beta": "0.1",
        "dpo.start": "null",
        "data.sources.0.path": "demo",
        "data.digest": "ab12",
        "note": "x" * 499 + "…",
        "odd_name": "true",
        "losses": '["sigmoid", "sft"]',
    }
    assert [record.getMessage() for record in caplog.records if record.name == "posttrain.tracking.runs"] == [
        "MLflow parameter dpo.beta keeps its value 0.1, because MLflow does not allow changing it to 0.5."
    ]


def test_datasets_artifacts_and_tags_arrive(tracker: Tracker, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    with tracker.parent("load_preferences") as stage:
        origin = DatasetOrigin("demo")
        stage.log_dataset("preferences", digest="ab" * 32, n_rows=100, origin=origin, context="training")
        stage.log_dict({"n_kept": 100}, "reports/data_report.json")
        stage.set_tags({"posttrain.code": "1a2b"})

    run = runs(tracker)["demo-run"]
    [dataset_input] = run.inputs.dataset_inputs
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("preferences", "ab" * 8)
    assert json.loads(dataset_input.dataset.profile) == {"num_rows": 100, "digest": "ab" * 32}
    assert run.data.tags["posttrain.code"] == "1a2b"
    report = MlflowClient(tracker.uri).download_artifacts(run.info.run_id, "reports/data_report.json", str(tmp_path))
    assert json.loads(Path(report).read_text(encoding="utf-8")) == {"n_kept": 100}


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (
            DatasetOrigin("org/pairs", commit="c" * 40),
            {"path": "org/pairs", "revision": "c" * 40},
        ),
        (DatasetOrigin("data/pairs.jsonl", digest="d" * 64), {"uri": "data/pairs.jsonl"}),
        (
            DatasetOrigin("s3://bucket/pairs-*.jsonl", objects={"s3://bucket/pairs-1.jsonl": "v1"}),
            {"uri": "s3://bucket/pairs-1.jsonl"},
        ),
        (
            DatasetOrigin("s3://bucket/p*", objects={"s3://bucket/p1": "v1", "s3://bucket/p2": "v2"}),
            {"uri": "s3://bucket/p*"},
        ),
    ],
)
def test_a_dataset_names_its_real_source(tracker: Tracker, origin: DatasetOrigin, expected: dict[str, str]) -> None:
    """As MLflow itself reads it back."""
    import mlflow

    with tracker.parent("load_preferences") as stage:
        stage.log_dataset("preferences", digest="ab" * 32, n_rows=7, origin=origin, context="training")
    [found] = runs(tracker)["demo-run"].inputs.dataset_inputs
    source = mlflow.data.get_source(found)
    kind = {"org/pairs": "hugging_face", "data/pairs.jsonl": "local"}.get(origin.path, "s3")
    assert found.dataset.source_type == source._get_source_type() == kind
    assert expected.items() <= source.to_dict().items()
    profile = json.loads(found.dataset.profile)
    assert profile.get("source_objects", {}) == origin.objects
    assert profile.get("source_digest") == origin.digest


def test_artifact_store_outage_does_not_delay_metrics_and_state(tracker: Tracker, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    (tmp_path / "file").touch()
    MlflowClient(tracker.uri).create_experiment(tracker.experiment, (tmp_path / "file" / "not_a_folder").as_uri())
    with tracker.parent("evaluate") as stage:
        stage.log_dict({"accuracy": 0.7}, "evaluation.json")
        stage.log_metrics({"dpo/accuracy": 0.7})

    run = runs(tracker)["demo-run"]
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"dpo/accuracy": 0.7})
    assert stage.unsent is not None
    [unsent] = [record for record in read_unsent(stage.unsent) if record["kind"] == "artifact"]
    assert (unsent["key"], json.loads(unsent["value"])) == ("evaluation.json", {"accuracy": 0.7})


def test_dpo_log_is_published_under_readable_names() -> None:
    log = {"loss": 0.7, "rewards/accuracies": 0.5, "rewards/margins": 0.1, "rewards/chosen": 0.2,
           "rewards/rejected": 0.1, "logps/chosen": -9.0, "learning_rate": 1e-6, "grad_norm": 2.0}  # fmt: skip
    assert published_metrics(log) == {
        "train/loss": 0.7, "train/accuracy": 0.5, "train/margin": 0.1, "train/reward_chosen": 0.2,
        "train/reward_rejected": 0.1, "train/logps_chosen": -9.0, "train/learning_rate": 1e-6, "train/grad_norm": 2.0,
    }  # fmt: skip
    assert published_metrics({"eval_loss": 0.6, "eval_rewards/margins": 0.2, "eval_runtime": 3.0, "epoch": 1.0}) == {
        "validation/loss": 0.6, "validation/margin": 0.2, "validation/runtime_s": 3.0,
    }  # fmt: skip


def test_every_step_of_a_trainer_is_recorded_once(tracker: Tracker, tmp_path: Path) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * x).square().mean()}

    rows = [{"x": 1.0}] * 4
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=1, logging_steps=1, learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, report_to=[], disable_tqdm=True,
        eval_strategy="steps", eval_steps=2, prediction_loss_only=True, save_strategy="no",
    )  # fmt: skip
    with tracker.stage("train_dpo") as stage:
        callbacks = [tracking.metrics_callback(stage)]
        Trainer(Line(), arguments, train_dataset=rows, eval_dataset=rows, callbacks=callbacks).train()  # type: ignore[arg-type]

    # loss w², gradient 2w, so that each step takes w to 0.8 w: 2, 1.6, 1.28, 1.024.
    run = runs(tracker)["train_dpo of demo-run"]
    assert history(tracker.uri, run, "train/loss") == [(1, 4.0), (2, pytest.approx(2.56)), (3, pytest.approx(1.6384))]
    assert history(tracker.uri, run, "validation/loss") == [(2, pytest.approx(1.6384)), (3, pytest.approx(1.048576))]
    assert history(tracker.uri, run, "train/learning_rate") == [(1, 0.1), (2, 0.1), (3, 0.1)]
    assert [step for step, _ in history(tracker.uri, run, "train/epoch")] == [1, 2, 3]
    assert history(tracker.uri, run, "whole_training/loss") == [(3, pytest.approx((4 + 2.56 + 1.6384) / 3))]


def test_tracker_can_be_pickled_and_hides_its_password() -> None:
    tracker = Tracker("postgresql://me:secret@host/db", "experiment", "id-1", "demo-run")
    assert pickle.loads(pickle.dumps(tracker)) == tracker  # noqa: S301
    assert "secret" not in repr(tracker)
    assert tracker.shown_uri == "postgresql://host/db"


def test_link_opens_the_charts(tracker: Tracker) -> None:
    with tracker.parent("load_preferences") as stage:
        link, command = stage.link(), stage.serve_command
    experiment = runs(tracker)["demo-run"].info.experiment_id
    assert link.startswith(f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?workflowType=machine_learning")
    assert command == f"mlflow ui --backend-store-uri {tracker.uri} --port 5000"


@pytest.mark.parametrize("password", ["secret", "s@cret"])
def test_no_password_is_shown(password: str, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(f"http://me:{password}@127.0.0.1:9", "none", "id-1", "demo-run")
    with tracker.parent("evaluate") as stage:
        link = stage.link()
    assert stage.unsent is not None
    shown = [link, caplog.text, stage.unsent.read_text(encoding="utf-8"), repr(tracker), tracker.shown_uri]
    with pytest.raises(UserError) as told:
        tracking.send(stage.unsent.read_text(encoding="utf-8"), tracker.uri)
    with pytest.raises(registry_error()) as raised:
        ModelRegistry(tracker.uri, "model").numbers()
    for text in [*shown, str(told.value), tracking.reason(raised.value)]:
        assert text
        assert "cret" not in text


def test_unsent_records_of_an_earlier_attempt_are_not_sent(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Unsent records of a first attempt must not be added to the run of a second attempt."""
    first = Tracker("http://127.0.0.1:9", request.node.name, "id-1", "demo-run")
    with first.stage("train_dpo") as stage:
        stage.log_metrics({"train/loss": 0.5}, step=1)
    assert stage.unsent is not None
    unsent = stage.unsent.read_text(encoding="utf-8")
    second = Tracker(store, first.experiment, "id-1", "demo-run")
    with second.stage("train_dpo") as stage:
        stage.log_metrics({"train/loss": 0.5}, step=1)
    with pytest.raises(UserError, match="train_dpo was run again"):
        tracking.send(unsent, store)
    assert history(store, runs(second)["train_dpo of demo-run"], "train/loss") == [(1, 0.5)]


@pytest.mark.parametrize("text", ["", "[]", "{}", "no JSON", '{"step": "a", "nested": true, "started": 1}'])
def test_sending_another_file_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a file of unsent MLflow records"):
        tracking.send(text, "http://127.0.0.1:9")


def test_nested_settings_become_flat() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [{"e": "x"}, {"e": None}]}) == {
        "a.b.c": "1",
        "d.0.e": "x",
        "d.1.e": "null",
    }


def test_default_store_is_from_the_environment_or_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.default_tracking_uri() == f"sqlite:///{tmp_path}/.mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking.default_tracking_uri() == "http://host:5000"


@pytest.fixture
def server(store: str, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, store)
    server.start()
    yield server
    server.kill()


def outages(caplog: pytest.LogCaptureFixture, step: str) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [message for message in messages if f"does not accept the records of {step}" in message]


@pytest.mark.slow
def test_server_outage_does_not_end_the_training_or_lose_records(
    server: Server, store: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked_stage, "SEND_EVERY_S", 0.05)
    tracker = Tracker(server.uri, "dies", pipeline_run="id-1", run_name="demo-run")
    server.wait()

    # The server dies during SFT and stays down.
    with tracker.stage("train_sft") as sft:
        for step in range(10):
            sft.log_metrics({"train/loss": step / 10}, step)
            time.sleep(0.02)
        server.kill()
        for step in range(10, 2000):
            sft.log_metrics({"train/loss": step / 10}, step)
    assert len(outages(caplog, "train_sft")) == 1
    assert server.uri in outages(caplog, "train_sft")[0]
    assert str(sft.unsent) in caplog.text
    arrived = history(store, runs(tracker, store)["train_sft of demo-run"], "train/loss")
    assert arrived, "nothing was sent while the server lived"
    assert sorted(arrived + unsent_metrics(sft.unsent)) == [(step, step / 10) for step in range(2000)]

    # The server is down when DPO starts and comes back during it.
    monkeypatch.setattr(tracked_stage, "RETRY_AFTER_S", 0.1)
    monkeypatch.setattr(tracked_stage, "RETRY_AT_MOST_AFTER_S", 0.5)
    with tracker.stage("train_dpo") as dpo:
        dpo.log_metrics({"train/loss": 0.5}, step=1)
        server.start()
        server.wait()
        dpo.log_metrics({"train/loss": 0.25}, step=2)
    assert dpo.unsent is None
    assert len(outages(caplog, "train_dpo")) == 1
    run = runs(tracker, store)["train_dpo of demo-run"]
    assert history(store, run, "train/loss") == [(1, 0.5), (2, 0.25)]
    assert run.data.tags[tracking.OUTAGE_TAG].startswith("since ")
    assert run.data.tags[STAGE_TAG] == "train_dpo"
    assert set(states(tracker, store).values()) == {"FINISHED"}, (
        "the state of SFT is sent as soon as the server is back"
    )

    # The unsent records of SFT are sent twice.
    assert sft.unsent is not None
    for _ in range(2):
        tracking.send(sft.unsent.read_text(encoding="utf-8"), server.uri)
    run = runs(tracker, store)["train_sft of demo-run"]
    assert history(store, run, "train/loss") == [(step, step / 10) for step in range(2000)]
    assert run.info.status == "FINISHED"
    assert states(tracker, store)["demo-run"] == "FINISHED"


def test_missing_server_delays_a_step_by_seconds_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still. What counts is how long the client intends to wait between its attempts."""
    pauses_s: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses_s.append)
    tracker = Tracker("http://127.0.0.1:9", "none", pipeline_run="id-1", run_name="demo-run")
    with tracker.stage("train_dpo") as stage:
        stage.log_params({"dpo": {"beta": 0.1}})
        stage.log_metrics({"train/loss": 0.5}, step=1)
        assert "no answer yet" in stage.link()

    assert sum(pauses_s) < 15
    assert [message.split(":")[0] for message in outages(caplog, "train_dpo")] == ["MLflow at http"]
    assert "Connection refused" in caplog.text
    assert unsent_metrics(stage.unsent) == [(1, 0.5)]


@pytest.mark.parametrize("uri", ["file:///some/mlruns", "file:/some/mlruns", "/some/mlruns/"])
def test_a_folder_of_runs_is_refused_with_the_database_to_use(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=r"MLflow 3 keeps no runs in folders: .*sqlite:////some/mlruns/mlflow.db"):
        tracking.default_tracking_uri()
