"""A temporary folder for the files that a step's materializer will store."""

import atexit
import shutil
import tempfile
from pathlib import Path


def workspace() -> Path:
    """Return an empty folder, deleted when the process ends: ZenML stores artifacts after the step has returned."""
    folder = tempfile.mkdtemp(prefix="posttrain-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
