"""The local cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from posttrain.errors import UserError


def cache_dir() -> Path:
    """Return the folder for files that can be downloaded or built again: `$POSTTRAIN_CACHE`, or a folder in the user's cache.

    Raises:
        UserError: the folder cannot be written to.
    """
    place = os.environ.get("POSTTRAIN_CACHE")
    if place is not None and not place.strip():
        raise UserError(
            "POSTTRAIN_CACHE is empty: set it to a folder for downloads, or unset it to use ~/.cache/posttrain"
        )
    folder = Path(place or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posttrain")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be created ({error.strerror}): set POSTTRAIN_CACHE to a folder that can be written to"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written to: set POSTTRAIN_CACHE to a folder that can")
    return folder
