"""The stacks that are shipped, what the nightly runs ask of them, the image, and `posttrain stack check`."""

import json
import os
import re
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from click.testing import CliRunner
from moto.server import ThreadedMotoServer
from support.paths import ROOT
from support.stack_files import SECRET, registered
from zenml.client import Client
from zenml.image_builders import BuildContext
from zenml.stack import Stack

from pipelines.dpo import dpo_pipeline
from posttrain.cli.main import main
from posttrain.orchestration.caching import cache_key as _code
from posttrain.orchestration.caching.cache_key import code_digest, digest_of_code, digest_of_step, step_digest
from posttrain.orchestration.stacks.stack_check import check_stack, steps_of
from posttrain.orchestration.stacks.stack_probes import differing

pytestmark = pytest.mark.slow

ON_GPU = {"train_sft", "score_reference", "train_dpo", "generate", "evaluate"}
NIGHTLY = ROOT / "configs" / "nightly_kubernetes.yaml"


@pytest.fixture(scope="module")
def services() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server that answers as MLflow, a registry and Kubernetes do, and what it shall answer to each path."""
    nodes = [
        {"metadata": {"name": "cpu"}, "status": {"allocatable": {"cpu": "8"}}},
        {
            "metadata": {"name": "gpu", "labels": {"kind": "l4"}},
            "status": {"allocatable": {"nvidia.com/gpu": "2"}},
        },
    ]
    answers: dict[str, Any] = {
        "/v2/": {},
        "/api/v1/namespaces/zenml": {"metadata": {"name": "zenml"}},
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": {"spec": {}, "status": {"allowed": True}},
        "/api/v1/nodes": {"items": nodes},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            answer = answers.get(path, 404)
            if path.startswith("/api/2.0/mlflow"):
                asked = f"Basic {b64encode(f'a-user:{SECRET}'.encode()).decode()}"
                answer = answers.get(path, {} if self.headers.get("Authorization") == asked else 401)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"" if isinstance(answer, int) else json.dumps(answer).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", answers
        server.shutdown()


@pytest.fixture(scope="module")
def kubernetes(
    services: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., dict[str, tuple[str, str]]]]:
    """The stack of `configs/stacks/kubernetes.sh` on these servers; called, what the check finds of each part."""
    host, folder = services[0], tmp_path_factory.mktemp("kubernetes")
    s3 = ThreadedMotoServer(port=0, verbose=False)
    s3.start()
    endpoint = "http://{}:{}".format(*s3.get_host_and_port())
    keys = {"aws_access_key_id": "a-key", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="tests")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://{host}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "a-context", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "a-context",
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    made = registered(
        "kubernetes",
        folder,
        AWS_ENDPOINT_URL=endpoint,
        MLFLOW_TRACKING_URI=f"http://{host}",
        REGISTRY=f"{host}/tests",
    )
    with made, pytest.MonkeyPatch.context() as patch:
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(folder / "kubeconfig"))
        yield lambda steps=None: {f.part: (f.state, f.text) for f in check_stack("gpu", steps or steps_of(NIGHTLY))}
    s3.stop()


def test_a_stack_that_can_be_used(kubernetes: Callable[[], Any]) -> None:
    """All parts but the server: the tests' own store is a file of this machine."""
    found = kubernetes()
    assert {part for part, (state, _) in found.items() if state == "ok"} == {
        "composition",
        "artifact store",
        "tracker",
        "registry",
        "orchestrator",
        "schedules",
        "gpu",
    }
    assert found["server"] == (
        "FAILED",
        "ZenML's database is a file on this machine, which remote steps cannot reach: connect to a server: zenml login URL",
    )
    assert found["artifact store"][1].startswith("s3://tests/posttrain: written, read and deleted in ")
    assert found["gpu"][1] == "2 nvidia.com/gpu on 1 of 2 nodes"
    assert found["image"][0] == "unknown"


@pytest.mark.parametrize(
    ("path", "answer", "part", "message"),
    [
        (
            "/api/2.0/mlflow/experiments/search",
            401,
            "tracker",
            "rejects the user name and password: correct them with zenml secret update",
        ),
        ("/api/2.0/mlflow/experiments/search", 403, "tracker", "start MLflow with --allowed-hosts 127.0.0.1"),
        ("/v2/", 503, "registry", "503.*: check that it runs"),
        ("/api/v1/namespaces/zenml", 404, "orchestrator", "namespace zenml is missing: kubectl create namespace zenml"),
        (
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {"spec": {}, "status": {"allowed": False}},
            "orchestrator",
            "you are not allowed to create jobs in namespace zenml",
        ),
        (
            "/api/v1/nodes",
            {"items": []},
            "gpu",
            "a pod requests 1 nvidia.com/gpu, but no node has more than 0: add a node",
        ),
    ],
)
def test_a_part_that_cannot_be_used(
    kubernetes: Callable[[], Any], services: tuple[str, Any], path: str, answer: Any, part: str, message: str
) -> None:
    before = services[1].get(path)
    services[1][path] = answer
    try:
        found = kubernetes()
    finally:
        del services[1][path]
        if before is not None:
            services[1][path] = before
    assert found[part][0] == "FAILED"
    assert re.search(message, found[part][1], re.DOTALL)
    assert {other for other, (state, _) in found.items() if state == "FAILED"} == {"server", part}


def test_a_gpu_of_another_kind_does_not_count(kubernetes: Callable[..., Any]) -> None:
    pod = {"resources": {"limits": {"nvidia.com/gpu": "1"}}, "node_selectors": {"kind": "h100"}}
    found = kubernetes({"train_sft": {"settings": {"orchestrator.kubernetes": {"pod_settings": pod}}}})
    assert "no node with the labels {'kind': 'h100'} has more than 0" in found["gpu"][1]


def test_an_artifact_store_without_access_is_reported(
    kubernetes: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket takes and gives, but does not delete: found out now and not after the training."""

    class Bucket:
        path, config, open = str(tmp_path), SimpleNamespace(is_local=False), staticmethod(open)

        def remove(self, path: str) -> None:
            raise PermissionError("Access Denied")

    monkeypatch.setattr(Stack, "artifact_store", Bucket())
    state, text = kubernetes()["artifact store"]
    assert state == "FAILED"
    assert text.startswith("PermissionError: Access Denied: check that the bucket exists and that the keys")


def test_the_command_ends_with_an_error_if_a_part_cannot_be_used(kubernetes: Callable[[], Any]) -> None:
    done = CliRunner().invoke(main, ["stack", "check", "gpu", "-c", str(NIGHTLY)])
    assert done.exit_code == 1
    assert done.output.splitlines()[0].startswith("FAILED   server: ")
    assert done.output.splitlines()[-1] == "Error: 1 of 9 parts cannot be used"
    assert CliRunner().invoke(main, ["stack", "check", "default"]).exit_code == 0
    missing = CliRunner().invoke(main, ["stack", "check", "x"]).output
    assert re.search(r"stack 'x': no such stack \(existing: .*\bdefault\b", missing)


@pytest.mark.parametrize(("name", "stack"), [("local_docker", "docker"), ("sagemaker", "sagemaker")])
def test_the_other_stacks_can_be_registered(tmp_path: Path, name: str, stack: str) -> None:
    with registered(name, tmp_path, AWS_ENDPOINT_URL="", REGISTRY="123456789012.dkr.ecr.us-east-1.amazonaws.com"):
        made = Stack.from_model(Client().get_stack(stack))
    assert made.orchestrator.flavor == name
    assert (made.artifact_store.path, made.experiment_tracker.flavor) == ("s3://tests/posttrain", "mlflow")


def test_secrets_are_stored_in_zenml_secrets_only(kubernetes: Callable[[], Any]) -> None:
    """Nothing that ZenML shows of the stack has one, and no file of it names one."""
    parts = [part for same in Client().get_stack("gpu").components.values() for part in same]
    shown = json.dumps([part.configuration for part in parts])
    assert "{{posttrain.MLFLOW_TRACKING_PASSWORD}}" in shown
    assert SECRET not in shown
    assert Client().get_secret("posttrain").secret_values["MLFLOW_TRACKING_PASSWORD"] == SECRET


def test_only_five_steps_request_a_gpu(kubernetes: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As ZenML has it after all files, defaults and stacks are merged; and what else a night depends on."""
    before = Client().active_stack_model.id
    Client().activate_stack("gpu")
    try:
        pipeline = dpo_pipeline.with_options(config_path=str(NIGHTLY))
        pipeline.prepare()
        snapshot, schedule, _ = pipeline._compile(config_path=str(NIGHTLY))
        images = Client().active_stack.get_docker_builds(snapshot=snapshot)
    finally:
        Client().activate_stack(before)
    settings = {
        name: step.config.settings["orchestrator:posttrain-kubernetes"].model_dump()
        for name, step in snapshot.step_configurations.items()
    }
    limits = {
        name: (found.get("pod_settings") or {}).get("resources", {}).get("limits") for name, found in settings.items()
    }
    assert {name for name, limit in limits.items() if limit == {"nvidia.com/gpu": "1"}} == ON_GPU
    assert {name for name, limit in limits.items() if limit is None} == set(limits) - ON_GPU
    assert {found["concurrency_policy"] for found in settings.values()} == {"Forbid"}
    assert {step.config.retry.max_retries for step in snapshot.step_configurations.values()} == {3}
    assert (schedule.name, schedule.cron_expression) == ("nightly", "0 3 * * *")
    assert [(image.settings.dockerfile, image.should_include_files(None)) for image in images] == [
        ("Dockerfile", False)
    ]


def test_the_nightly_config_for_sagemaker_requests_the_same(tmp_path: Path) -> None:
    document = yaml.safe_load((ROOT / "configs" / "nightly_sagemaker.yaml").read_text())
    night = yaml.safe_load(NIGHTLY.read_text())
    assert set(document["steps"]) == set(night["steps"]) == ON_GPU
    assert document["parameters"] == night["parameters"]


def in_image() -> dict[str, Path]:
    """The files that ZenML hands to docker, by their path there."""
    context = BuildContext(root=str(ROOT)).get_files()
    return {path: Path(source) for path, source in context.items() if source and Path(source).is_file()}


def test_the_image_contains_pins_and_code_only() -> None:
    """What ZenML hands to docker has nothing in which a secret could lie; `.zen` comes along, but is not copied."""
    files = {path for path in in_image() if not path.startswith(".zen")}
    packages = ("posttrain/", "pipelines/", "steps/", "materializers/")
    beside = {path for path in files if not path.startswith(packages)}
    assert beside == {
        "Dockerfile",
        "constraints.txt",
        "pyproject.toml",
        "collect_pipeline.py",
        "dpo_pipeline.py",
        "sweep_pipeline.py",
        "verifier_pipeline.py",
    }
    package_data = {".css", ".html", ".jinja", ".js", ".md", ".template", ".typed"}
    assert {Path(path).suffix for path in files - beside} - package_data == {".py"}


def test_the_image_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (user,) = [i for i, line in enumerate(lines) if line.startswith("USER")]
    assert lines[user] == "USER 1000"
    assert not any(line.startswith(("RUN", "COPY", "ADD")) for line in lines[user:])


@pytest.mark.parametrize(("backend", "works"), [("cu130", True), ("cpu", True), ("cu130", False)])
def test_an_image_for_gpus_is_built_only_if_it_can_compile_c(tmp_path: Path, backend: str, works: bool) -> None:
    """Triton does so when it starts. Runs the Dockerfile's own commands, with this machine's compiler or one that fails."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    (command,) = [line.removeprefix("RUN ") for line in text.splitlines() if "Python.h" in line]
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{"exit 0" if works else "exit 1"}\n')
    compiler.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TORCH_BACKEND": backend}
    done = subprocess.run(["sh", "-c", command], env=environment, check=False)
    assert (done.returncode == 0) is works
    assert (tmp_path / "asked").exists() is (backend != "cpu")


def test_the_code_in_the_image_has_the_callers_digest(tmp_path: Path) -> None:
    """What ZenML hands to docker, laid out as in the image."""
    for path, source in in_image().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(source.read_bytes())
    folders = {package: tmp_path / package for package in ("posttrain", "materializers", "steps")}
    assert digest_of_code(folders) == code_digest()
    assert digest_of_step("steps.train_dpo", folders) == step_digest("steps.train_dpo")
    (tmp_path / "steps" / "train_dpo.py").write_text("")
    assert digest_of_code(folders) != code_digest()


@pytest.mark.parametrize(("here", "there", "same"), [("2.13.0+cpu", "2.13.0+cu130", True), ("2.13.0", "2.12.0", False)])
def test_cpu_and_gpu_builds_of_one_version_have_the_same_digest(
    monkeypatch: pytest.MonkeyPatch, here: str, there: str, same: bool
) -> None:
    """A laptop without a GPU starts what a GPU trains: torch for either is one version."""

    def digest(version: str) -> str:
        monkeypatch.setattr(_code, "package_versions", lambda: {"torch": version})
        return str(_code.code_digest.__wrapped__())

    assert (digest(here) == digest(there)) == same


def test_packages_that_differ_from_their_pins_are_listed() -> None:
    pins = "# pins\ntorch==2.13.0\nhuggingface-hub==2.4.0\nruff==0.17.5\n"
    found = {"torch": "2.12.0+cu130", "huggingface_hub": "2.4.0", "pip": "1"}
    assert differing(found, pins) == ["torch 2.12.0+cu130 (pinned: 2.13.0)"]
