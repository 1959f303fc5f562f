"""A fork server that has imported what a training needs, so that processes which train start at once."""

import multiprocessing
import os
from multiprocessing.forkserver import ensure_running
from typing import Any

import pytest
from torch.distributed.launcher.api import LaunchConfig

from posttrain.forward import ranks
from posttrain.training import launcher
from support.paths import ROOT

FORKS = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Start the server. Python 3.11 does not tell it where to look for modules, and it is silent about what it misses."""
    FORKS.set_forkserver_preload(["support.interrupted"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT)]))
        ensure_running()


@pytest.fixture
def forked_processes(fork_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes that share a training or a scoring. Without it they are spawned and import for seconds, as users' do."""

    def forking(**options: Any) -> LaunchConfig:
        return LaunchConfig(**{**options, "start_method": "forkserver"})

    monkeypatch.setattr(launcher, "LaunchConfig", forking)
    monkeypatch.setattr(ranks, "CONTEXT", FORKS)
