"""The project that a command or a run belongs to: the folder with pipelines, steps and configs."""

from __future__ import annotations

from pathlib import Path

from zenml.client import Client


def project_root() -> Path:
    """Return the folder with `.zen` at or above the current one; the current one where there is none."""
    return Client.find_repository() or Path.cwd()


def step_names(root: Path) -> frozenset[str]:
    """Return the names of a project's steps: one module for each in its folder `steps`."""
    return frozenset(path.stem for path in (root / "steps").glob("*.py") if not path.stem.startswith("_"))
