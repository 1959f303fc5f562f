"""An OpenAI-compatible endpoint over an exported model: `transformers serve` or vLLM in a process of its own.

With `follow`, the endpoint changes to another model when there is one: that model is exported while the old one still answers, then
the server restarts with it.
"""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import requests
from transformers.utils.import_utils import is_serve_available

from posttrain.errors import UserError

Engine = Literal["auto", "transformers", "vllm"]
STOP_AFTER_S = 10.0
"""Time that a server gets to finish its answers before it is killed."""


@dataclass(frozen=True)
class ServedModel:
    """An exported model."""

    folder: Path
    """Its name is the model's name in requests."""
    label: str
    """For display, such as `demo-3`."""


@dataclass(frozen=True)
class ModelServer:
    """Where and with what a model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    engine: Engine = "auto"
    follow_every_s: float = 30.0
    """Pause between two looks for another model."""

    @property
    def url(self) -> str:
        """The base URL for OpenAI's client."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{host}:{self.port}/v1"

    def check(self) -> None:
        """Check that the engine is installed and the port is free, before a model is loaded.

        Raises:
            UserError: if not.
        """
        if self.engine_used == "vllm" and not _installed("vllm"):
            raise UserError("--engine vllm: vLLM is not installed here: install it, or use --engine transformers")
        if self.engine_used == "transformers" and not is_serve_available():
            raise UserError("serving needs packages that are not installed: pip install 'posttrain[serve]'")
        try:
            with socket.create_server((self.host, self.port)):
                pass
        except OSError as error:
            reason = str(error.strerror).partition(" (while")[0]  # Python adds the address
            raise UserError(
                f"{self.host}:{self.port}: cannot be listened on ({reason}): choose another --port or --host, or stop the "
                "server that uses it"
            ) from error

    @property
    def engine_used(self) -> str:
        """The engine, which is vLLM where it is installed unless the settings name one."""
        return self.engine if self.engine != "auto" else "vllm" if _installed("vllm") else "transformers"

    def command(self, model: ServedModel) -> list[str]:
        """Return the command that serves a model. It runs in the parent of the model's folder, so that the name is the folder's."""
        name, address = model.folder.name, ["--host", self.host, "--port", str(self.port)]
        if self.engine_used == "vllm":
            return [_beside_python("vllm"), "serve", f"./{name}", "--served-model-name", name, *address]
        return [_beside_python("transformers"), "serve", name, *address]


def serve(
    model: ServedModel,
    endpoint: ModelServer,
    say: Callable[[str], Any],
    changed: Callable[[], ServedModel | None] | None = None,
) -> None:
    """Serve a model until this process is told to stop.

    Args:
        say: prints a line.
        changed: returns another model that is to be served now, or None. It may raise `UserError` or `OSError`, after which the
            old model is served on.

    Raises:
        UserError: the server ended by itself.
    """
    with _terminable():
        while True:
            with _running(model, endpoint) as server:
                _wait_until_ready(server, endpoint)
                say(f"{model.label} is at {endpoint.url} (model: {model.folder.name}; {endpoint.engine_used})")
                model = _next_model(server, endpoint, say, changed)


def _next_model(
    server: subprocess.Popen[bytes],
    endpoint: ModelServer,
    say: Callable[[str], Any],
    changed: Callable[[], ServedModel | None] | None,
) -> ServedModel:
    """Wait for another model and return it."""
    trouble = None
    while True:
        try:
            server.wait(endpoint.follow_every_s if changed else None)
        except subprocess.TimeoutExpired:
            assert changed is not None
            try:
                if (found := changed()) is not None:
                    return found
                trouble = None
            except (UserError, OSError) as error:
                if str(error) != trouble:
                    say(f"still serving the same model: {error}")
                trouble = str(error)
        else:
            raise UserError(f"the server ended with exit code {server.returncode}: its last lines above say why")


@contextmanager
def _running(model: ServedModel, endpoint: ModelServer) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen(endpoint.command(model), cwd=model.folder.parent)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(STOP_AFTER_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], endpoint: ModelServer) -> None:
    health = endpoint.url.removesuffix("/v1") + "/health"
    while server.poll() is None:
        try:
            if requests.get(health, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise UserError(
        f"the server ended with exit code {server.returncode} before it was ready: its last lines above say why"
    )


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, with its server."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _beside_python(command: str) -> str:
    """Return the path of a command of this environment, which need not be on the PATH."""
    return str(Path(sys.executable).with_name(command))
