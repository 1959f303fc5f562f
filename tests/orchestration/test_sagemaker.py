"""What SageMaker would be given, held against a local stand-in of AWS (moto) that takes it and runs nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from support.paths import ROOT
from support.stack_files import ENVIRONMENT, registered
from zenml.client import Client
from zenml.image_builders import LocalImageBuilder
from zenml.stack import Stack

from pipelines.dpo import dpo_pipeline
from posttrain.orchestration.stacks import schedules

CONFIG = ROOT / "configs" / "nightly_sagemaker.yaml"
REGISTRY = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
IMAGE = f"{REGISTRY}/zenml@sha256:{'0' * 64}"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stack of `configs/stacks/sagemaker.sh`, active, on that stand-in; its image is not built."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setattr(
        "sagemaker.session.sts_regional_endpoint", lambda region: endpoint
    )  # it does not ask the environment
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(ROOT / "configs" / "stacks" / "sagemaker-sdk.yaml"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="tests")
    monkeypatch.setattr(LocalImageBuilder, "build", lambda *_, **__: IMAGE)
    monkeypatch.setattr(Stack, "requires_remote_server", False)
    before = Client().active_stack_model.id
    with registered("sagemaker", tmp_path, AWS_ENDPOINT_URL="", REGISTRY=REGISTRY):
        Client().activate_stack("sagemaker")
        yield
        Client().activate_stack(before)
    server.stop()


def scheduled(path: Path = CONFIG) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs a file; gives the definition of the pipeline that AWS has then, and of its schedule."""
    assert dpo_pipeline.with_options(config_path=str(path))() is None
    scheduler = boto3.client("scheduler")
    (found,) = scheduler.list_schedules()["Schedules"]
    schedule = scheduler.get_schedule(Name=found["Name"], GroupName=found["GroupName"])
    name = schedule["Target"]["Arn"].rpartition("/")[2]
    pipeline = boto3.client("sagemaker").describe_pipeline(PipelineName=name)
    return {**pipeline, "steps": json.loads(pipeline["PipelineDefinition"])["Steps"]}, schedule


@pytest.mark.soak
def test_the_submitted_pipeline_has_the_settings_of_the_config(aws: None, tmp_path: Path) -> None:
    """Definition, instance types, role, image and schedule; then an update, a pause and the end of it."""
    pipeline, schedule = scheduled()
    jobs = {step["Name"]: step["Arguments"] for step in pipeline["steps"]}
    types = {name: job["ResourceConfig"]["InstanceType"] for name, job in jobs.items()}
    on_gpu = {"train_sft", "score_reference", "train_dpo", "generate", "evaluate"}
    assert {name for name, kind in types.items() if kind == "ml.g5.2xlarge"} == on_gpu
    assert {name for name, kind in types.items() if kind == "ml.m5.xlarge"} == set(jobs) - on_gpu
    assert {"load_preferences", "promote", "report"} <= set(jobs)
    assert {job["AlgorithmSpecification"]["TrainingImage"] for job in jobs.values()} == {IMAGE}
    assert {job["RoleArn"] for job in jobs.values()} == {ENVIRONMENT["SAGEMAKER_EXECUTION_ROLE"]}
    assert {job["StoppingCondition"]["MaxRuntimeInSeconds"] for job in jobs.values()} == {72000}
    waits = {step["Name"]: step["DependsOn"] for step in pipeline["steps"] if step.get("DependsOn")}
    assert {"train_sft", "score_reference"} <= set(waits["train_dpo"])
    assert pipeline["RoleArn"] == ENVIRONMENT["SAGEMAKER_EXECUTION_ROLE"]
    assert schedule["ScheduleExpression"] == "cron(0 3 * * ? *)"
    assert schedule["ScheduleExpressionTimezone"] == "UTC"
    assert schedule["Target"]["RoleArn"] == ENVIRONMENT["SAGEMAKER_SCHEDULER_ROLE"]
    assert schedule["State"] == "ENABLED"
    assert ENVIRONMENT["MLFLOW_TRACKING_PASSWORD"] not in pipeline["PipelineDefinition"]

    document = yaml.safe_load(CONFIG.read_text())
    document["schedule"]["cron_expression"] = "30 4 * * ? *"
    (tmp_path / "later.yaml").write_text(yaml.safe_dump(document))
    updated, schedule = scheduled(tmp_path / "later.yaml")
    assert schedule["ScheduleExpression"] == "cron(30 4 * * ? *)"  # and it is the only one
    assert updated["PipelineName"] != pipeline["PipelineName"]

    def state() -> list[str]:
        return [found["State"] for found in boto3.client("scheduler").list_schedules()["Schedules"]]

    schedules.set_active(schedules.find("nightly-sagemaker"), False)
    assert (state(), schedules.find("nightly-sagemaker").active) == (["DISABLED"], False)
    schedules.set_active(schedules.find("nightly-sagemaker"), True)
    assert state() == ["ENABLED"]
    schedules.delete(schedules.find("nightly-sagemaker"))
    assert state() == []
    assert schedules.every() == []
