"""The pipeline on a Kubernetes cluster with GPUs, pretended or real, as configs/stacks/kubernetes.sh and
configs/nightly_kubernetes.yaml set it up: who asks for a GPU, what a lost pod costs, and what a schedule does.

Needs, beside the servers, which pods must reach under the same addresses, a registry and a context of kubectl that may make a
namespace. Takes about half an hour on two cores.
"""

import json
import os
import re
import subprocess
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from kubernetes import client as kubernetes
from kubernetes.config import new_client_from_config
from support.paths import ROOT
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from posttrain.data.demo import pairs as demo
from posttrain.orchestration.caching.cache_key import code_digest
from remote.conftest import (
    CHECKPOINT,
    SMALL,
    TRAIN_DPO_AGAIN,
    command,
    curve,
    endpoint,
    in_mid_dpo,
    keys,
    same_curves,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ASK_FOR_A_GPU = {"train_sft", "score_reference", "train_dpo", "generate", "evaluate"}
EVERY_NIGHT = "0 3 * * *"
BASE = "/base"
N_STEPS = 150
"""Of DPO: the tiny base is quick, and there must be a middle to be lost in."""
MLFLOW_PASSWORD = f"canary{uuid.uuid4().hex}"
"""A server that asks for none takes any."""


class Cluster:
    """A namespace for these tests alone, and what runs there."""

    def __init__(self, context: str, namespace: str, folder: Path, bucket: str) -> None:
        api = new_client_from_config(context=context)
        self.core, self.batch = kubernetes.CoreV1Api(api), kubernetes.BatchV1Api(api)
        self.namespace, self.folder, self.bucket = namespace, folder, bucket

    def keep_base(self, base: Path) -> None:
        """Puts a model where pods can mount it: they reach no model hub, and the demo's own base goes with its own rows only."""
        files = {path.name: b64encode(path.read_bytes()).decode() for path in base.iterdir()}
        self.core.create_namespaced_config_map(self.namespace, {"metadata": {"name": "base"}, "binaryData": files})

    def run_file(self, label: str, interval_s: float = 0, **zenml: Any) -> Path:
        """configs/nightly_kubernetes.yaml with the demo's rows and a tiny base in place of its model and data."""
        document = yaml.safe_load((ROOT / "configs" / "nightly_kubernetes.yaml").read_text(encoding="utf-8"))
        config = SMALL | {
            "name": self.namespace,
            "tracking": {"experiment": self.namespace},
            "model": {"base": BASE, "method": "full"},
            "data": SMALL["data"] | {"sources": [{"path": f"s3://{self.bucket}/rows/*.jsonl"}]},
            "dpo": SMALL["dpo"] | {"max_steps": N_STEPS},
            "checkpoints": {"interval_s": interval_s},
        }
        document |= {"run_name": f"{self.namespace}-{label}-{{date}}-{{time}}", "parameters": {"config": config}}
        given = os.environ.get("POSTTRAIN_TEST_BUILD_ARGS", "TORCH_BACKEND=cpu").split()
        build = document["settings"]["docker"]["parent_image_build_config"]["build_options"]
        build["build_args"] = dict(argument.split("=", 1) for argument in given)
        document["steps"] = {name: json.loads(json.dumps(step)) for name, step in document["steps"].items()}
        document["settings"]["orchestrator.kubernetes"]["pod_settings"] = {}
        for part in (document, *document["steps"].values()):
            pod = part["settings"]["orchestrator.kubernetes"]["pod_settings"]
            pod.setdefault("volumes", []).append({"name": "base", "configMap": {"name": "base"}})
            pod.setdefault("volume_mounts", []).append({"name": "base", "mountPath": BASE})
            if "resources" in pod:
                pod["resources"]["requests"] = {"cpu": "200m", "memory": "500Mi"}
        for name, more in zenml.pop("steps", {}).items():
            document["steps"][name] |= more
        path = self.folder / f"{label}.yaml"
        path.write_text(yaml.safe_dump({**document, **zenml}))
        return path

    def run(self, label: str, **zenml: Any) -> PipelineRunResponse:
        """A run now, without a schedule; returns as soon as it is under way."""
        path = self.run_file(label, schedule=None, **zenml)
        command("zenml", "pipeline", "run", "dpo_pipeline", "-c", str(path), "-s", "gpu")
        (run,) = Client().list_pipeline_runs(name=f"startswith:{self.namespace}-{label}").items
        return run

    def pods(self, run: PipelineRunResponse) -> dict[str, Any]:
        """The pods of a run's steps, by step; the newest, where a step had several."""
        found = self.core.list_namespaced_pod(self.namespace, label_selector=f"run_id={run.id}").items
        found.sort(key=lambda pod: pod.metadata.creation_timestamp)
        return {pod.metadata.labels.get("step_name", "orchestrator"): pod for pod in found}

    def log(self, pod: Any) -> str:
        return str(self.core.read_namespaced_pod_log(pod.metadata.name, self.namespace))

    def cron_job(self) -> Any:
        (found,) = self.batch.list_namespaced_cron_job(self.namespace).items
        return found


@pytest.fixture(scope="module")
def cluster(
    zenml: Client, s3: Any, bucket: str, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    context = os.environ.get("POSTTRAIN_TEST_KUBE_CONTEXT")
    if not context:
        pytest.skip(
            "POSTTRAIN_TEST_KUBE_CONTEXT is not set: name a context of kubectl whose cluster has nvidia.com/gpu"
        )
    if Client().list_stacks(name="gpu").total:
        pytest.fail("the ZenML server has a stack `gpu` already: use a server for tests alone", pytrace=False)
    found = Cluster(context, bucket, tmp_path_factory.mktemp("runs"), bucket)
    rows = islice(demo.rows(), 300)
    s3.put_object(Bucket=bucket, Key="rows/1.jsonl", Body="".join(json.dumps(row) + "\n" for row in rows).encode())
    environment = {
        "S3_PATH": f"s3://{bucket}",
        "AWS_ACCESS_KEY_ID": endpoint("S3_KEY"),
        "AWS_SECRET_ACCESS_KEY": endpoint("S3_SECRET"),
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint("S3_URL"),
        "MLFLOW_TRACKING_URI": endpoint("MLFLOW_URL"),
        "MLFLOW_TRACKING_USERNAME": "any",
        "MLFLOW_TRACKING_PASSWORD": MLFLOW_PASSWORD,
        "REGISTRY": endpoint("REGISTRY"),
        "KUBERNETES_CONTEXT": context,
        "KUBERNETES_NAMESPACE": bucket,
    }
    found.core.create_namespace({"metadata": {"name": bucket}})
    try:
        found.keep_base(tiny_folder)
        command("sh", "configs/stacks/kubernetes.sh", **environment)
        yield found
    finally:
        for schedule in Client().list_schedules().items:
            Client().delete_schedule(schedule.id)
        command("zenml", "stack", "delete", "gpu", "--yes", "--recursive")
        for secret in ("posttrain", "posttrain-s3"):
            Client().delete_secret(secret)
        found.core.delete_namespace(bucket)


def finished(run: PipelineRunResponse) -> PipelineRunResponse:
    """A run once it has ended, and well."""
    wait_for(lambda: Client().get_pipeline_run(run.id).status.is_finished, 1500)
    run = Client().get_pipeline_run(run.id)
    assert run.status == ExecutionStatus.COMPLETED, {name: step.status for name, step in run.steps.items()}
    return run


def worked(run: PipelineRunResponse) -> set[str]:
    return {name for name, step in run.steps.items() if step.status == ExecutionStatus.COMPLETED}


def digest(run: PipelineRunResponse) -> str:
    ((checkpoint,),) = run.steps["train_dpo"].outputs.values()
    return str(checkpoint.run_metadata["digest"])


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> PipelineRunResponse:
    return finished(cluster.run("undisturbed"))


def test_the_stack_passes_its_own_check(cluster: Cluster) -> None:
    said = command("posttrain", "stack", "check", "gpu")
    assert "FAILED" not in said
    print(said)


def test_training_asks_for_a_gpu_and_loading_does_not(undisturbed: PipelineRunResponse, cluster: Cluster) -> None:
    asked = {
        step
        for step, pod in cluster.pods(undisturbed).items()
        if "nvidia.com/gpu" in (pod.spec.containers[0].resources.limits or {})
    }
    assert asked == ASK_FOR_A_GPU
    assert worked(undisturbed) <= cluster.pods(undisturbed).keys()


def test_the_code_in_the_image_is_the_callers(
    undisturbed: PipelineRunResponse, database: psycopg.Connection[Any]
) -> None:
    query = "select value from params join runs using (run_uuid) where runs.name = %s and params.key = 'code.digest'"
    assert database.execute(query, (undisturbed.name,)).fetchone() == (code_digest(),)


def test_no_secret_is_in_the_image(undisturbed: PipelineRunResponse, cluster: Cluster) -> None:
    image = cluster.pods(undisturbed)["train_dpo"].spec.containers[0].image
    code = (ROOT / "dpo_pipeline.py").read_bytes()  # which is there, so it tells that the layers are looked into
    secrets = [MLFLOW_PASSWORD, endpoint("S3_SECRET"), endpoint("ZENML_PASSWORD")]
    sought = [code, *map(str.encode, secrets)]
    found, rest, n_bytes = set(), b"", 0
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
        assert saved.stdout
        while chunk := saved.stdout.read(1 << 24):
            n_bytes += len(chunk)
            chunk = rest + chunk
            found |= {value for value in sought if value in chunk}
            rest = chunk[-max(map(len, sought)) :]  # a value may begin in one chunk and end in the next
    assert saved.returncode == 0
    print(f"{n_bytes / 1e9:.1f} GB of the image's layers and description: {len(found) - 1} of {len(secrets)} secrets")
    assert found == {code}


def test_artifacts_are_in_s3_and_curves_in_mlflow(
    undisturbed: PipelineRunResponse, s3: Any, bucket: str, database: psycopg.Connection[Any]
) -> None:
    there = keys(s3, bucket)
    for step in undisturbed.steps.values():
        for artifacts in step.outputs.values():
            folder = artifacts[0].uri.removeprefix(f"s3://{bucket}/")
            assert any(key.startswith(f"{folder}/") for key in there), folder
    query = (
        "select count(*) from metrics join runs using (run_uuid) where runs.name = %s and metrics.key = 'train/loss'"
    )
    assert database.execute(query, (f"train_dpo of {undisturbed.name}",)).fetchone() == (N_STEPS,)


def test_a_pod_told_to_go_in_mid_dpo_saves_first_and_the_next_goes_on_from_that_very_step(
    undisturbed: PipelineRunResponse, cluster: Cluster, s3: Any, bucket: str, database: psycopg.Connection[Any]
) -> None:
    def saved() -> list[str]:
        return [found[1] for key in keys(s3, bucket) if (found := CHECKPOINT.search(key))]

    # No checkpoint is due within the hour, so one that is there was saved on being told.
    run = cluster.run("told", interval_s=3600, **TRAIN_DPO_AGAIN)
    wait_for(lambda: bool(curve(database, f"train_dpo of {run.name}", "train/loss")), 600)
    assert not saved()
    told = cluster.pods(run)["train_dpo"].metadata.name
    cluster.core.delete_namespaced_pod(told, cluster.namespace)  # SIGTERM, and the grace period that the file gives
    wait_for(lambda: bool(saved()), 120)
    (step,) = saved()
    run = finished(run)
    pod = cluster.pods(run)["train_dpo"]
    assert pod.metadata.name != told
    went_on = re.search(r"DPO goes on from step (\d+).*", cluster.log(pod))
    assert went_on, cluster.log(pod)
    assert 0 < int(went_on[1]) == int(step) < N_STEPS
    print(f"Pod {told} was told to go, and saved step {int(step)}; {pod.metadata.name}: {went_on[0]}")
    assert digest(run) == digest(undisturbed)
    same_curves(undisturbed.name, run.name, database)


def test_a_pod_deleted_in_mid_dpo_comes_back_and_goes_on(
    undisturbed: PipelineRunResponse, cluster: Cluster, s3: Any, bucket: str, database: psycopg.Connection[Any]
) -> None:
    run = cluster.run("disturbed", **TRAIN_DPO_AGAIN)
    wait_for(lambda: in_mid_dpo(s3, bucket), 600)
    lost = cluster.pods(run)["train_dpo"].metadata.name
    cluster.core.delete_namespaced_pod(lost, cluster.namespace, grace_period_seconds=0)  # as when its machine is lost
    run = finished(run)
    pod = cluster.pods(run)["train_dpo"]
    assert pod.metadata.name != lost
    went_on = re.search(r"DPO goes on from step (\d+).*", cluster.log(pod))
    assert went_on, cluster.log(pod)
    assert 0 < int(went_on[1]) < N_STEPS
    print(f"Pod {lost} was deleted; {pod.metadata.name}: {went_on[0]}")
    assert digest(run) == digest(undisturbed)
    same_curves(undisturbed.name, run.name, database)


@pytest.fixture(scope="module")
def schedule(undisturbed: PipelineRunResponse, cluster: Cluster) -> Callable[[str], Any]:
    """Runs the nightly config with a cron expression."""

    def run_file(cron: str) -> str:
        path = cluster.run_file("nightly", schedule={"name": "nightly", "cron_expression": cron})
        return command("zenml", "pipeline", "run", "dpo_pipeline", "-c", str(path), "-s", "gpu")

    return run_file


def fires(schedule: Callable[[str], Any]) -> PipelineRunResponse:
    """The run that the schedule starts within two minutes, at a minute that comes once an hour, once it has ended."""
    schedule(f"{(datetime.now(UTC) + timedelta(seconds=100)).minute} * * * *")
    wait_for(lambda: bool(runs_of_schedule()), 300)
    return finished(runs_of_schedule()[0])


def runs_of_schedule() -> list[PipelineRunResponse]:
    (found,) = Client().list_schedules(name="nightly").items
    return list(Client().list_pipeline_runs(schedule_id=found.id, sort_by="desc:created").items)


def test_a_night_without_news_trains_nothing_and_says_so(
    schedule: Callable[[str], Any],
    undisturbed: PipelineRunResponse,
    cluster: Cluster,
    database: psycopg.Connection[Any],
) -> None:
    run = fires(schedule)
    assert not worked(run) & ASK_FOR_A_GPU
    assert not cluster.pods(run).keys() & ASK_FOR_A_GPU  # nothing asks for a GPU only to find that it need not work
    assert run.run_metadata["outcome"] == "unchanged"
    assert run.run_metadata["figures_of"] == undisturbed.name
    query = "select value from tags join runs using (run_uuid) where runs.name = %s and tags.key = 'outcome'"
    assert database.execute(query, (run.name,)).fetchall() == [("unchanged",)]
    assert digest(run) == digest(undisturbed)
    took = run.end_time - run.start_time
    print(
        f"A firing that found nothing new: {took.total_seconds():.0f} s, pods: {', '.join(sorted(cluster.pods(run)))}"
    )


def test_a_row_added_makes_the_next_firing_train(
    schedule: Callable[[str], Any], undisturbed: PipelineRunResponse, cluster: Cluster, s3: Any, bucket: str
) -> None:
    row = {
        "prompt": "Hello, my kettle hums a song at dusk.",  # whose hash puts it into training; at night it would be a test pair
        "chosen": "Please move it away from the window.",
        "rejected": "Turn it off and on again, and then do so once more.",
    }
    s3.put_object(Bucket=bucket, Key="rows/2.jsonl", Body=json.dumps(row).encode())
    run = fires(schedule)
    assert {"train_sft", "train_dpo", "evaluate"} <= worked(run)
    assert run.run_metadata["outcome"] == "trained"
    assert digest(run) != digest(undisturbed)


def test_the_schedule_is_updated_paused_and_deleted(schedule: Callable[[str], Any], cluster: Cluster) -> None:
    schedule("0 4 * * *")
    assert cluster.cron_job().spec.schedule == "0 4 * * *"
    schedule(EVERY_NIGHT)
    assert cluster.cron_job().spec.schedule == EVERY_NIGHT
    assert re.search(r"nightly .*0 3 \* \* \* .*active", command("posttrain", "schedule", "list"))
    command("posttrain", "schedule", "pause", "nightly")
    assert cluster.cron_job().spec.suspend
    schedule(EVERY_NIGHT)
    assert cluster.cron_job().spec.suspend, "an update let a paused schedule go on"
    command("posttrain", "schedule", "resume", "nightly")
    assert not cluster.cron_job().spec.suspend
    command("posttrain", "schedule", "delete", "nightly")
    # The cluster's garbage collector removes it, a moment after it was told to.
    wait_for(lambda: not cluster.batch.list_namespaced_cron_job(cluster.namespace).items, 60)
    assert not Client().list_schedules(name="nightly").total
