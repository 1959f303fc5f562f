"""Check that every part of a stack works, before any money is spent."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
import zenml
from zenml.client import Client
from zenml.orchestrators import ContainerizedOrchestrator
from zenml.stack import Stack

from posttrain.compat.zenml_internals import server_version
from posttrain.config.load import load_document
from posttrain.errors import UserError
from posttrain.orchestration.project import project_root
from posttrain.orchestration.stacks.stack_probes import (
    LIST_PACKAGES,
    TIMEOUT_S,
    Unknown,
    _asked,
    _connect,
    _docker,
    _gpu_of_nodes,
    _gpu_of_quota,
    differing,
)


@dataclass(frozen=True)
class StackFinding:
    """The result of checking one part of a stack."""

    part: str
    state: Literal["ok", "FAILED", "unknown"]
    text: str

    def __str__(self) -> str:
        return f"{self.state:7}  {self.part}: {self.text}"


def check_stack(name: str | None, steps: dict[str, Any]) -> Iterator[StackFinding]:
    """Yield one finding for each part, as soon as it is known.

    Args:
        name: of the stack; None for the active stack.
        steps: section `steps` of the run file, with the resources that a run requests.

    Raises:
        UserError: there is no such stack, or packages that it needs are not installed.
    """
    stack = _stack(name)
    for part, (check, remedy) in CHECKS.items():
        try:
            yield StackFinding(part, "ok", check(stack, steps))
        except Unknown as reason:
            yield StackFinding(part, "unknown", str(reason))
        except UserError as problem:
            yield StackFinding(part, "FAILED", str(problem))
        except Exception as error:  # noqa: BLE001 (any error of a part is its finding)
            said = "" if str(error) in ("", "None") else f": {str(error).splitlines()[0][:200]}"
            yield StackFinding(part, "FAILED", f"{type(error).__name__}{said}: {remedy}")


def server(stack: Stack, steps: dict[str, Any]) -> str:
    """Check ZenML's server."""
    address_and_version = server_version(Client())
    if address_and_version is None:
        if stack.orchestrator.config.is_remote:
            raise UserError(
                "ZenML's database is a file on this machine, which remote steps cannot reach: connect to a server: zenml login URL"
            )
        return "a file on this machine"
    url, version = address_and_version
    if version != zenml.__version__:
        raise UserError(
            f"{url} has version {version}, this environment {zenml.__version__}: install the server's version"
        )
    return f"{url} answers, version {version}"


def composition(stack: Stack, steps: dict[str, Any]) -> str:
    """Check that the parts of the stack fit together."""
    stack.validate()
    return ", ".join(f"{component.type.value} {component.flavor}" for component in stack.all_components)


def artifact_store(stack: Stack, steps: dict[str, Any]) -> str:
    """Write, read and delete a file in the artifact store."""
    store = stack.artifact_store
    if store.config.is_local and stack.orchestrator.config.is_remote:
        raise UserError(f"{store.path} is a folder on this machine, which remote steps cannot reach: use flavor s3")
    if endpoint := (getattr(store.config, "client_kwargs", None) or {}).get("endpoint_url"):
        _connect(endpoint)
    path, content, started = (
        f"{store.path.rstrip('/')}/posttrain-check-{uuid.uuid4().hex}",
        uuid.uuid4().bytes,
        time.monotonic(),
    )
    with store.open(path, "wb") as file:
        file.write(content)
    try:
        with store.open(path, "rb") as file:
            found = file.read()
    finally:
        store.remove(path)
    if found != content:
        raise UserError(f"{path}: the content read back differs from what was written: do not use this store")
    return f"{store.path}: written, read and deleted in {time.monotonic() - started:.1f} s"


def tracker(stack: Stack, steps: dict[str, Any]) -> str:
    """Check that the MLflow server accepts the stack's credentials."""
    component: Any = stack.experiment_tracker
    if component is None or component.flavor != "mlflow":
        if stack.orchestrator.config.is_remote:
            raise UserError(
                "no MLflow tracker, so curves would be lost with each pod: add one with zenml stack update -e TRACKER"
            )
        return "none; curves are stored at MLFLOW_TRACKING_URI, or in .mlflow/"
    uri, config = str(component.get_tracking_uri()), component.config
    if not uri.startswith(("http://", "https://")):
        return uri
    _connect(uri)
    answer = requests.get(
        f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
        params={"max_results": "1"},
        auth=(config.tracking_username, config.tracking_password) if config.tracking_username else None,
        headers={"Authorization": f"Bearer {config.tracking_token}"} if config.tracking_token else None,
        verify=not config.tracking_insecure_tls,
        timeout=TIMEOUT_S,
    )
    if answer.status_code == 401:
        raise UserError(f"{uri} rejects the user name and password: correct them with zenml secret update")
    if answer.status_code == 403:
        raise UserError(
            f"{uri} answers 403: start MLflow with --allowed-hosts {urlsplit(uri).hostname}, or grant the user access"
        )
    answer.raise_for_status()
    return f"{uri} answers and accepts the credentials"


def registry(stack: Stack, steps: dict[str, Any]) -> str:
    """Check that the container registry answers."""
    component = stack.container_registry
    if component is None:
        if isinstance(stack.orchestrator, ContainerizedOrchestrator) and stack.orchestrator.config.is_remote:
            raise UserError("none, so nodes cannot pull the image: add one with zenml stack update -c REGISTRY")
        return "none; images remain on this machine"
    host = component.config.uri.split("/")[0]
    for scheme in ("https", "http"):
        try:
            answer = requests.get(f"{scheme}://{host}/v2/", auth=component.credentials, timeout=TIMEOUT_S)
        except requests.exceptions.SSLError:
            continue
        if answer.status_code == 401 and component.credentials:
            raise UserError(f"{host} rejects the user name and password: correct them with zenml secret update")
        if answer.status_code == 401:
            return f"{host} answers and asks for credentials: docker login {host}, and image_pull_secrets for the nodes"
        answer.raise_for_status()
        return f"{host} answers"
    raise UserError(f"{host} answers neither HTTPS nor HTTP: correct the registry's uri")


def orchestrator(stack: Stack, steps: dict[str, Any]) -> str:
    """Check that the orchestrator lets you start runs."""
    component: Any = stack.orchestrator
    if component.flavor == "kubernetes":
        from kubernetes import client as kubernetes

        namespace, api = component.config.kubernetes_namespace, component.get_kube_client()
        try:
            kubernetes.CoreV1Api(api).read_namespace(namespace, _request_timeout=TIMEOUT_S)
        except kubernetes.ApiException as error:
            if error.status != 404:
                raise
            raise UserError(f"namespace {namespace} is missing: kubectl create namespace {namespace}") from error
        for resource in ("jobs", "cronjobs"):
            asked = {"namespace": namespace, "verb": "create", "group": "batch", "resource": resource}
            review = kubernetes.AuthorizationV1Api(api).create_self_subject_access_review(
                {"spec": {"resourceAttributes": asked}}, _request_timeout=TIMEOUT_S
            )
            if not review.status.allowed:
                raise UserError(
                    f"you are not allowed to create {resource} in namespace {namespace}: ask for the role `edit` there"
                )
        return f"namespace {namespace} accepts jobs and cronjobs"
    if component.flavor == "sagemaker":
        who = component.sagemaker_session.boto_session.client("sts").get_caller_identity()["Arn"]
        return f"signed in to AWS as {who}"
    if component.flavor == "local_docker":
        _docker("version")
        return "docker answers"
    return f"flavor {component.flavor}"


def schedules(stack: Stack, steps: dict[str, Any]) -> str:
    """Report whether the orchestrator supports schedules; both answers are fine."""
    return "yes" if stack.orchestrator.config.is_schedulable else "no: a run file with `schedule` needs another stack"


def gpu(stack: Stack, steps: dict[str, Any]) -> str:
    """Check that the GPUs that the run file requests exist."""
    component: Any = stack.orchestrator
    if component.flavor == "kubernetes":
        return _gpu_of_nodes(component, _asked(steps, "orchestrator.kubernetes"))
    if component.flavor == "sagemaker":
        return _gpu_of_quota(component, _asked(steps, "orchestrator.sagemaker"))
    raise Unknown(f"flavor {component.flavor} does not report GPUs")


def image(stack: Stack, steps: dict[str, Any]) -> str:
    """Check that the newest image has the versions that constraints.txt pins."""
    if not isinstance(stack.orchestrator, ContainerizedOrchestrator):
        return "none; steps run in this environment"
    builds = Client().list_builds(stack_id=stack.id, sort_by="desc:created", size=1, hydrate=True).items
    if not builds:
        raise Unknown("no image has been built for this stack yet; the first run builds one")
    name = next(iter(builds[0].images.values())).image
    try:
        _docker("image", "inspect", name)
    except UserError as reason:
        raise Unknown(f"{name} is not on this machine, so its packages are unknown: docker pull {name}") from reason
    found = json.loads(_docker("run", "--rm", "--network", "none", "--entrypoint", "python", name, "-c", LIST_PACKAGES))
    wrong = differing(found, (project_root() / "constraints.txt").read_text(encoding="utf-8"))
    if wrong:
        raise UserError(f"{name} has {', '.join(wrong)}: rebuild it with settings.docker.prevent_build_reuse: true")
    return f"{name} has the pinned versions of its {len(found)} packages"


CHECKS: dict[str, tuple[Callable[[Stack, dict[str, Any]], str], str]] = {
    "server": (server, "zenml login URL"),
    "composition": (composition, "choose parts that fit together with zenml stack update"),
    "artifact store": (
        artifact_store,
        "check that the bucket exists and that the keys in its secret may put, get and delete",
    ),
    "tracker": (tracker, "check that the server runs and that its address is right: zenml experiment-tracker update"),
    "registry": (registry, "check that it runs and that its address is right: zenml container-registry update"),
    "orchestrator": (
        orchestrator,
        "check that the cluster runs, and that kubectl or aws work with the same account",
    ),
    "schedules": (schedules, ""),
    "gpu": (gpu, "check that you are allowed to list nodes or quotas"),
    "image": (image, "start docker"),
}


def steps_of(path: Path | None) -> dict[str, Any]:
    """Return the section `steps` of a run file.

    Raises:
        UserError: the file cannot be read, or its settings are wrong.
    """
    if path is None:
        return {}
    return dict(load_document(path)[0].get("steps") or {})


def _stack(name: str | None) -> Stack:
    client = Client()
    try:
        model = client.get_stack(name) if name else client.active_stack_model
    except KeyError as error:
        names = ", ".join(sorted(stack.name for stack in client.list_stacks(size=1000).items))
        raise UserError(f"stack {name!r}: no such stack (existing: {names}): see configs/stacks/") from error
    try:
        return Stack.from_model(model)
    except ImportError as error:
        raise UserError(f"stack {model.name}: {error}: pip install '.[aws,kubernetes,sagemaker]'") from error
