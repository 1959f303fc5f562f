"""The folder on this machine that keeps what was downloaded or built."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Where this project keeps what it can make or fetch again: `$POSTTRAIN_CACHE`, else a folder in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain"
    return Path(os.environ.get("POSTTRAIN_CACHE", default))
