"""Secrets that a run works with are nowhere in what it leaves: not in either database, no artifact, no log, not on the terminal."""

import base64
import http.server
import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from support.servers import Server
from zenml.client import Client
from zenml.enums import ExecutionStatus, StackComponentType

from pipelines.dpo import dpo_pipeline
from posttrain.orchestration.finished_runs import read_run_report
from posttrain.reporting.pages.run_page import report_page

pytestmark = pytest.mark.soak

HIDDEN_IN = {"secret"}
"""ZenML's own table of secrets."""


class ChattyJudge(http.server.BaseHTTPRequestHandler):
    """A judge that repeats the key it was sent, where no repetition belongs."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"error": self.headers["Authorization"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ChattyJudge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Those that a run gets, by what they are for, in the environment or as ZenML's secret."""
    names = ("data_key", "data_secret", "store_key", "store_secret", "hf", "judge", "mlflow_user", "mlflow_password")
    found = {name: f"canary{name.replace('_', '')}{uuid.uuid4().hex}" for name in names}
    for variable, name in (
        ("AWS_ACCESS_KEY_ID", "data_key"),
        ("AWS_SECRET_ACCESS_KEY", "data_secret"),
        ("HF_TOKEN", "hf"),
        ("JUDGE_KEY", "judge"),
    ):
        monkeypatch.setenv(variable, found[name])
    return found


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, secrets: dict[str, str]) -> Iterator[str]:
    """A bucket that is the artifact store of the active stack, with pairs in it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"canary-{uuid.uuid4().hex[:8]}"
    store = boto3.client("s3")
    store.create_bucket(Bucket=name)
    rows = [{"prompt": f"Question {i}?", "chosen": f"Yes, {i}.", "rejected": "No."} for i in range(40)]
    store.put_object(Bucket=name, Key="data/pairs.jsonl", Body="".join(json.dumps(row) + "\n" for row in rows).encode())
    client = Client()
    default = client.active_stack_model
    keys = {"aws_access_key_id": secrets["store_key"], "aws_secret_access_key": secrets["store_secret"]}
    client.create_secret(name, values=keys)
    client.create_stack_component(
        name=name,
        flavor="s3",
        component_type=StackComponentType.ARTIFACT_STORE,
        configuration={
            "path": f"s3://{name}/artifacts",
            "authentication_secret": name,
            "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"},  # type: ignore[dict-item]
        },
    )
    parts = {kind: components[0].id for kind, components in default.components.items()}
    client.create_stack(name, {**parts, StackComponentType.ARTIFACT_STORE: name})
    client.activate_stack(name)
    yield name
    client.activate_stack(default.id)


def left_by(bucket: str, mlflow: Path, here: Path) -> Iterator[tuple[str, bytes]]:
    """Everything that runs have left, each with where it is."""
    store = boto3.client("s3")
    for page in store.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page["Contents"]:
            yield f"s3://{bucket}/{item['Key']}", store.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
    for folder in (mlflow, here):
        for file in folder.rglob("*"):
            if file.is_file():
                yield str(file), file.read_bytes()
    with sqlite3.connect(Client().zen_store.config.database) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if table not in HIDDEN_IN:
                for row in database.execute(f'SELECT * FROM "{table}"'):
                    yield f"ZenML's table {table}", repr(row).encode()


def test_a_run_writes_no_secret_anywhere(
    bucket: str,
    judge: str,
    secrets: dict[str, str],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (mlflow := tmp_path / "mlflow").mkdir()
    (here := tmp_path / "here").mkdir()
    server = Server(mlflow, f"sqlite:///{mlflow}/mlflow.db")
    server.start()
    server.wait()
    user = f"{secrets['mlflow_user']}:{secrets['mlflow_password']}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", f"//{user}@"))
    monkeypatch.chdir(here)
    config = {
        "name": bucket,
        "model": {"base": str(tiny_folder)},
        "data": {"sources": [{"path": f"s3://{bucket}/data/pairs.jsonl"}], "test_size": 0.3},
        "sft": {"max_steps": 1, "max_length": 64},
        "dpo": {"max_steps": 2, "learning_rate": 0.1, "max_length": 64, "max_prompt_length": 48},  # to answer otherwise
        "evaluation": {
            "generations": {"n": 4, "max_new_tokens": 4},
            "judge": {"base_url": judge, "model": "chatty", "api_key_env": "JUDGE_KEY"},
        },
        "tracking": {"experiment": bucket},
    }
    (here / "run.yaml").write_text(yaml.safe_dump({"parameters": {"config": config}}))
    try:
        run = dpo_pipeline.with_options(config_path="run.yaml")()
    finally:
        server.kill()
    assert run is not None
    assert run.status == ExecutionStatus.COMPLETED
    again = dpo_pipeline.with_options(config_path="run.yaml")()  # and MLflow is gone: what is said of that
    assert again is not None

    report = read_run_report(run.id)[0]
    assert report.generations is not None
    judged = report.generations.comparisons["dpo_vs_sft"].by_judge
    assert judged is not None
    assert any("Bearer …" in failure for failure in judged.failures)
    (here / "report.html").write_text(report_page(report))
    for version in Client().list_artifact_versions(name="", size=200).items:
        assert "cloudpickle" not in version.materializer.import_path, version.name

    output = capfd.readouterr()
    told = [("the terminal", (output.out + output.err).encode()), ("the log", caplog.text.encode())]
    assert b"does not accept the records" in told[1][1]
    left = [*left_by(bucket, mlflow, here), *told]
    for part in ("/dpo_checkpoint/", "mlflow.db", "unsent/", "table step_run", "table pipeline_run", "report.html"):  # fmt: skip
        assert any(part in where for where, _ in left), f"{part} was not looked at"
    everything = {**secrets, "mlflow_header": base64.b64encode(user.encode()).decode()}
    found = [
        (name, where) for where, content in left for name, value in everything.items() if value.encode() in content
    ]
    assert found == []
