"""Connections to the servers that POSTTRAIN_TEST_… name, and runs of the pipeline against them in processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
import yaml
from support.paths import ROOT
from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.enums import StackComponentType
from zenml.models import PipelineRunResponse

from remote.wire import Wire

SMALL: dict[str, Any] = {
    "model": {"base": "demo", "method": "full"},
    "data": {"sources": [{"path": "demo", "limit": 300}], "test_size": 0.2, "validation_size": 0.05},
    "sft": {"max_steps": 6, "batch_size": 4, "max_length": 128, "eval_steps": 3},
    "dpo": {
        "max_steps": 40,
        "batch_size": 4,
        "max_length": 128,
        "max_prompt_length": 64,
        "eval_steps": 10,
    },
    "checkpoints": {"interval_s": 0},
    "evaluation": {"generations": {"n": 4, "max_new_tokens": 8}},
}
"""The demo, made small: DPO takes some seconds, so that there is a middle to be killed in."""
TRAIN_DPO_AGAIN: dict[str, Any] = {"steps": {"train_dpo": {"enable_cache": False}}}
CHECKPOINT = re.compile(r"training-checkpoints/dpo-[^/]+/step-(\d+)-[^/]+/manifest\.json")


def endpoint(name: str) -> str:
    """What `POSTTRAIN_TEST_<name>` says; without it a test is skipped, and fails in CI."""
    if value := os.environ.get(f"POSTTRAIN_TEST_{name}"):
        return value
    reason = (
        f"POSTTRAIN_TEST_{name} is not set: run tests/remote/with_servers make test-services, or set it to your own"
    )
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def s3() -> Any:
    """boto3's client of the S3 server."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint("S3_URL"),
        aws_access_key_id=endpoint("S3_KEY"),
        aws_secret_access_key=endpoint("S3_SECRET"),
        region_name="us-east-1",
    )


@pytest.fixture(scope="session")
def bucket(s3: Any) -> Iterator[str]:
    """A bucket for these tests alone."""
    name = f"posttrain-test-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=name)
    yield name
    for key in keys(s3, name):
        s3.delete_object(Bucket=name, Key=key)
    s3.delete_bucket(Bucket=name)


def keys(s3: Any, bucket: str) -> list[str]:
    """Of all objects in a bucket."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


@pytest.fixture(scope="session")
def database() -> Iterator[psycopg.Connection[Any]]:
    """The PostgreSQL database behind MLflow."""
    with psycopg.connect(endpoint("POSTGRES_URL"), autocommit=True) as connection:
        yield connection


def curve(database: psycopg.Connection[Any], run_name: str, key: str) -> list[tuple[int, float]]:
    """The points of a curve of MLflow as PostgreSQL has them, in the order of their steps."""
    rows = database.execute(
        "select metrics.step, metrics.value from metrics join runs using (run_uuid) "
        "where runs.name = %s and runs.lifecycle_stage = 'active' and metrics.key = %s order by metrics.step",
        (run_name, key),
    )
    return list(rows)


def same_curves(undisturbed: str, run: str, database: psycopg.Connection[Any]) -> None:
    """Two pipeline runs have the same curves of DPO, without gap or double."""
    for key in ("train/loss", "train/accuracy", "validation/loss"):
        expected = curve(database, f"train_dpo of {undisturbed}", key)
        assert expected
        assert curve(database, f"train_dpo of {run}", key) == expected


def in_mid_dpo(s3: Any, bucket: str) -> bool:
    """Whether there is a whole training checkpoint of DPO, and it is not one of its first steps."""
    return any(int(found[1]) >= 5 for key in keys(s3, bucket) if (found := CHECKPOINT.search(key)))


def wait_for(condition: Callable[[], bool], at_most_s: float) -> None:
    """Waits for something that must come to pass."""
    end = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < end, f"did not come to pass within {at_most_s} s"
        time.sleep(0.2)


def command(*words: str, **environment: str) -> str:
    """What a command of this environment prints; it must end well."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, **environment}
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Servers:
    """Where the pipeline runs, and the wires on its ways to S3 and MLflow."""

    stack: str
    experiment: str
    s3: Wire
    mlflow: Wire
    folder: Path

    def start(self, label: str, config: dict[str, Any], held_by: Path | None = None, **zenml: Any) -> "Run":
        """Start `zenml pipeline run dpo_pipeline` in a process of its own.

        Args:
            held_by: a folder, whose files let DPO continue: see tests/remote/held.py.
        """
        run_name = f"{self.experiment}-{label}"
        file, output = self.folder / f"{run_name}.yaml", self.folder / f"{run_name}.log"
        config = {"name": self.experiment, "tracking": {"experiment": self.experiment}, **config}
        file.write_text(
            yaml.safe_dump({"run_name": f"{run_name}-{{date}}-{{time}}", "parameters": {"config": config}, **zenml})
        )
        command = [Path(sys.executable).with_name("zenml"), "pipeline", "run", "dpo_pipeline", "-c", file]
        if held_by:
            command = [sys.executable, Path(__file__).with_name("held.py"), held_by, file]
        with output.open("w") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        return Run(run_name, process, output)

    def run(self, label: str, config: dict[str, Any], **zenml: Any) -> "Run":
        """A run that has ended well."""
        return self.start(label, config, **zenml).finish()


@dataclass
class Run:
    label: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def name(self) -> str:
        """With date and time, once ZenML has the run."""
        found = Client().list_pipeline_runs(name=f"startswith:{self.label}-", sort_by="desc:created", size=1).items
        return str(found[0].name) if found else self.label

    @property
    def output(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text())

    @property
    def response(self) -> PipelineRunResponse:
        """As the ZenML server has it."""
        return Client().get_pipeline_run(self.name)

    def metadata(self, step: str) -> dict[str, Any]:
        """Of the only artifact of a step."""
        ((artifact,),) = self.response.steps[step].outputs.values()
        return artifact.run_metadata

    def finish(self) -> "Run":
        assert self.process.wait(timeout=300) == 0, self.output
        return self

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits for something that must come to pass while the run is at work."""

        def came() -> bool:
            assert self.process.poll() is None, f"ended too early: {self.output}"
            return condition()

        wait_for(came, 300)

    def kill(self) -> None:
        """kill -9 of the process and all that it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def zenml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """This process, and those that it starts, connected to the ZenML server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENML_CONFIG_PATH", str(tmp_path_factory.mktemp("zenml")))
        patch.setenv("ZENML_STORE_TYPE", "rest")
        for name, variable in (("URL", "URL"), ("USERNAME", "USER"), ("PASSWORD", "PASSWORD")):
            patch.setenv(f"ZENML_STORE_{name}", endpoint(f"ZENML_{variable}"))
        patch.delenv("MLFLOW_TRACKING_URI")  # the stack's tracker says it
        _forget_client()
        yield Client()
    _forget_client()


def _forget_client() -> None:
    GlobalConfiguration._reset_instance()
    Client._reset_instance()


@pytest.fixture(scope="session")
def servers(zenml: Client, bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The local orchestrator beside an S3 artifact store and an MLflow server, both behind wires."""
    ways = Wire(endpoint("S3_URL")), Wire(endpoint("MLFLOW_URL"))
    name = bucket
    parts = {
        StackComponentType.ORCHESTRATOR: ("local", {}),
        StackComponentType.ARTIFACT_STORE: (
            "s3",
            {
                "path": f"s3://{bucket}",
                "authentication_secret": name,
                "client_kwargs": {"endpoint_url": ways[0].url, "region_name": "us-east-1"},
            },
        ),
        StackComponentType.EXPERIMENT_TRACKER: (
            "mlflow",
            {"tracking_uri": ways[1].url, "tracking_username": "any", "tracking_password": "any"},
        ),
    }
    zenml.create_secret(name, {"aws_access_key_id": endpoint("S3_KEY"), "aws_secret_access_key": endpoint("S3_SECRET")})
    for kind, (flavor, configuration) in parts.items():
        zenml.create_stack_component(name, flavor=flavor, component_type=kind, configuration=configuration)
    stack = zenml.create_stack(name, dict.fromkeys(parts, name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZENML_ACTIVE_STACK_ID", str(stack.id))
        yield Servers(name, name, *ways, tmp_path_factory.mktemp("runs"))
    zenml.delete_stack(name, recursive=True)
    zenml.delete_secret(name)
    for way in ways:
        way.close()
