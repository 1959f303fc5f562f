"""Probes of the parts of a stack: addresses, the Docker daemon, GPUs of a cluster or an account."""

from __future__ import annotations

import shutil
import socket
import subprocess
from typing import Any
from urllib.parse import urlsplit

from posttrain.errors import UserError

TIMEOUT_S = 10


GPU = "nvidia.com/gpu"


LIST_PACKAGES = """
import importlib.metadata, json
print(json.dumps({found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}))
"""


class Unknown(Exception):
    """The answer cannot be known from here; the message says why."""


def differing(found: dict[str, str], constraints: str) -> list[str]:
    """Return the packages whose versions differ from their pins, such as `torch 2.12.0 (pinned: 2.13.0)`."""

    def plain(name: str) -> str:
        return name.lower().replace("_", "-").replace(".", "-")

    pins = dict(line.split("==") for line in constraints.splitlines() if "==" in line and not line.startswith("#"))
    pins = {plain(name): version for name, version in pins.items()}
    return sorted(
        f"{name} {version} (pinned: {pins[plain(name)]})"
        for name, version in found.items()
        if plain(name) in pins and version.partition("+")[0] != pins[plain(name)]
    )


def _connect(url: str) -> None:
    """Check within seconds that an address accepts connections: clients of S3 would retry for minutes.

    Raises:
        OSError: nothing answers.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=TIMEOUT_S).close()


def _docker(*arguments: str) -> str:
    """Return what docker prints.

    Raises:
        UserError: docker is not installed, or fails.
    """
    if shutil.which("docker") is None:
        raise UserError("docker: command not found: install it")
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"docker {arguments[0]}: {done.stderr.strip()[-200:]}: check that docker runs and that you may use it"
        )
    return done.stdout


def _asked(steps: dict[str, Any], settings: str) -> list[dict[str, Any]]:
    """Return the settings for an orchestrator of every step that has any."""
    every = (((options or {}).get("settings") or {}).get(settings) for options in steps.values())
    return [found for found in every if found]


def _gpu_of_nodes(component: Any, asked: list[dict[str, Any]]) -> str:
    from kubernetes import client as kubernetes

    pods = [settings["pod_settings"] for settings in asked if settings.get("pod_settings")]
    wanted = [
        (int(pod.get("resources", {}).get("limits", {}).get(GPU, 0)), pod.get("node_selectors") or {}) for pod in pods
    ] or [(1, {})]
    nodes = kubernetes.CoreV1Api(component.get_kube_client()).list_node(_request_timeout=TIMEOUT_S).items
    held = [(int((node.status.allocatable or {}).get(GPU, 0)), node.metadata.labels or {}) for node in nodes]
    for n, selectors in wanted:
        fitting = [has for has, labels in held if selectors.items() <= labels.items()]
        if n > max(fitting, default=0):
            labelled = f" with the labels {selectors}" if selectors else ""
            raise UserError(
                f"a pod requests {n} {GPU}, but no node{labelled} has more than {max(fitting, default=0)}: add a node (a node pool "
                "that scales from zero shows none), check NVIDIA's device plugin, or request fewer"
            )
    return f"{sum(has for has, _ in held)} {GPU} on {sum(has > 0 for has, _ in held)} of {len(nodes)} nodes"


def _gpu_of_quota(component: Any, asked: list[dict[str, Any]]) -> str:
    types = sorted({settings["instance_type"] for settings in asked if settings.get("instance_type")})
    if not types:
        raise Unknown("no step has an instance_type: name the run file with --config")
    pages = component.sagemaker_session.boto_session.client("service-quotas").get_paginator("list_service_quotas")
    quotas = {
        quota["QuotaName"]: quota["Value"]
        for page in pages.paginate(ServiceCode="sagemaker")
        for quota in page["Quotas"]
    }
    for kind in types:
        if not quotas.get(f"{kind} for training job usage"):
            raise UserError(
                f"your quota of {kind} for training jobs is 0: request an increase in the AWS console under Service Quotas"
            )
    return ", ".join(f"{kind}: {quotas[f'{kind} for training job usage']:.0f} at once" for kind in types)
