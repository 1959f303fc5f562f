"""The pipeline against a real S3 store, PostgreSQL, MLflow and ZenML server: what they hold, and what it survives."""

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from zenml.enums import ExecutionStatus

from remote.conftest import SMALL, TRAIN_DPO_AGAIN, Run, Servers, curve, in_mid_dpo, keys, same_curves

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

N_STEPS = {"train_sft": SMALL["sft"]["max_steps"], "train_dpo": SMALL["dpo"]["max_steps"]}


@pytest.fixture(scope="module")
def undisturbed(servers: Servers) -> Run:
    return servers.run("undisturbed", SMALL)


def test_the_bucket_holds_every_artifact(undisturbed: Run, s3: Any, bucket: str) -> None:
    there = keys(s3, bucket)
    for name, step in undisturbed.response.steps.items():
        for artifacts in step.outputs.values():
            folder = artifacts[0].uri.removeprefix(f"s3://{bucket}/")
            assert any(key.startswith(f"{folder}/") for key in there), f"{name}: {folder}"
    checkpoint = (
        undisturbed.response.steps["train_dpo"].outputs["dpo_checkpoint"][0].uri.removeprefix(f"s3://{bucket}/")
    )
    manifest = f"{checkpoint}/files/manifest.json"
    stored = json.loads(s3.get_object(Bucket=bucket, Key=manifest)["Body"].read())
    assert stored["digest"] == undisturbed.metadata("train_dpo")["digest"]
    for name, digest in stored["files"].items():
        content = s3.get_object(Bucket=bucket, Key=manifest.replace("manifest.json", name))["Body"].read()
        assert hashlib.sha256(content).hexdigest() == digest, name
    assert not [key for key in there if key.startswith("training-checkpoints/")]


def test_the_database_holds_every_step_once(undisturbed: Run, database: psycopg.Connection[Any], s3: Any) -> None:
    runs = database.execute(
        "select run_uuid, name, status from runs where lifecycle_stage = 'active' and name like %s",
        (f"%{undisturbed.name}",),
    ).fetchall()
    named = {name: (run, status) for run, name, status in runs}
    there = (undisturbed.name, *(f"{step} of {undisturbed.name}" for step in N_STEPS))
    assert {name: status for name, (_, status) in named.items()} == dict.fromkeys(there, "FINISHED")
    for step, n in N_STEPS.items():
        for key in ("train/loss", "train/learning_rate"):
            points = curve(database, f"{step} of {undisturbed.name}", key)
            assert [at for at, _ in points] == list(range(1, n + 1)), key
    config = f"{named[undisturbed.name][0]}/artifacts/config.json"
    buckets = [there["Name"] for there in s3.list_buckets()["Buckets"]]
    assert any(key.endswith(config) for name in buckets for key in keys(s3, name)), "MLflow's artifacts are not in S3"


def test_a_rerun_that_changes_nothing_trains_nothing(undisturbed: Run, servers: Servers, record_property: Any) -> None:
    before, started = (servers.s3.n_sent, servers.s3.n_received), time.monotonic()
    again = servers.run("again", SMALL)
    seconds = time.monotonic() - started
    sent, received = servers.s3.n_sent - before[0], servers.s3.n_received - before[1]
    print(f"A rerun that changes nothing: {seconds:.0f} s, {sent:,} bytes to S3, {received:,} bytes from it")
    worked = {name for name, step in again.response.steps.items() if step.status == ExecutionStatus.COMPLETED}
    assert worked == {"load_preferences", "resolve_base", "find_champion", "conclude"}
    assert again.response.run_metadata["outcome"] == "unchanged"
    assert again.metadata("train_dpo") == undisturbed.metadata("train_dpo")
    assert sent + received < 2_000_000  # no weights: those alone are 8 MB


def test_killed_in_mid_dpo_it_goes_on_where_it_was(
    undisturbed: Run, servers: Servers, s3: Any, bucket: str, database: psycopg.Connection[Any], tmp_path: Path
) -> None:
    killed = servers.start("killed", SMALL, held_by=tmp_path, **TRAIN_DPO_AGAIN)
    killed.wait_for(lambda: in_mid_dpo(s3, bucket))
    killed.kill()
    resumed = servers.run("resumed", SMALL, **TRAIN_DPO_AGAIN)
    went_on = re.search(r"DPO goes on from step (\d+)", resumed.output)
    assert went_on, resumed.output
    assert 0 < int(went_on[1]) < N_STEPS["train_dpo"]
    same_as(undisturbed, resumed, database)
    assert not [key for key in keys(s3, bucket) if key.startswith("training-checkpoints/")]
    status = "select status from runs where lifecycle_stage = 'active' and name = %s"
    assert database.execute(status, (killed.name,)).fetchall() == [("KILLED",)]


def test_s3_may_be_gone_for_a_minute(
    undisturbed: Run, servers: Servers, s3: Any, bucket: str, database: psycopg.Connection[Any]
) -> None:
    run = servers.start("without-s3", SMALL, retry={"max_retries": 5, "delay": 15, "backoff": 1}, **TRAIN_DPO_AGAIN)
    run.wait_for(lambda: in_mid_dpo(s3, bucket))
    with servers.s3.cut():
        time.sleep(60)
    same_as(undisturbed, run.finish(), database)
    assert not [key for key in keys(s3, bucket) if key.startswith("training-checkpoints/")]


def test_mlflow_may_be_gone_in_the_middle(
    undisturbed: Run, servers: Servers, database: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """MLflow is away from DPO's step 10 to step 20, however long these take."""
    run = servers.start("without-mlflow", SMALL, held_by=tmp_path, **TRAIN_DPO_AGAIN)
    run.wait_for((tmp_path / "at-10").exists)
    with servers.mlflow.cut():
        (tmp_path / "cut").touch()
        run.wait_for((tmp_path / "at-20").exists)
        run.wait_for(lambda: "does not accept the records of train_dpo" in run.output)
    (tmp_path / "restored").touch()
    same_as(undisturbed, run.finish(), database)


def same_as(undisturbed: Run, run: Run, database: psycopg.Connection[Any]) -> None:
    """The same model from the same curves, in a run that is complete."""
    assert run.metadata("train_dpo")["digest"] == undisturbed.metadata("train_dpo")["digest"]
    assert run.response.status == ExecutionStatus.COMPLETED
    same_curves(undisturbed.name, run.name, database)
