"""The local cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for files that can be downloaded or built again: `$POSTTRAIN_CACHE`, or a folder in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain"
    return Path(os.environ.get("POSTTRAIN_CACHE", default))
