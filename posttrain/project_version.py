"""Whether a project fits the installed library: its pipelines and steps are copies of one version's."""

from __future__ import annotations

import re
from pathlib import Path

PINNED = re.compile(r'"posttrain==([^"]+)"')
"""The version in a project's pyproject.toml, as `posttrain init` writes it."""


def other_version(folder: Path, installed: str) -> str | None:
    """Return why the project at or above a folder does not fit the installed version; None if it does, or there is none."""
    project = next((at for at in (folder, *folder.parents) if (at / ".zen").is_dir()), None)
    try:
        about = (project / "pyproject.toml").read_text(encoding="utf-8") if project else ""
    except (OSError, UnicodeDecodeError):
        return None
    pinned = PINNED.search(about)
    if pinned is None or pinned[1] == installed:
        return None
    return (
        f"the project {project} was made with posttrain {pinned[1]}, and {installed} is installed: install that version "
        f"(`pip install posttrain=={pinned[1]}`), or make a new project with `posttrain init` and copy your configs into it"
    )
