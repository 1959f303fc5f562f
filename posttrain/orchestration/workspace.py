"""Where a step writes what its materializer will store."""

import atexit
import shutil
import tempfile
from pathlib import Path


def workspace() -> Path:
    """An empty folder that is removed when the process ends: ZenML stores an artifact after its step has returned."""
    folder = tempfile.mkdtemp(prefix="posttrain-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
