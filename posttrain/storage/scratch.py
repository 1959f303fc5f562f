"""The folder of all temporary files of a run. What a killed run left there is deleted when the next one starts."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from posttrain.storage.processes import has_died, this_process

PREFIX, OWNER = "posttrain-run-", "process"
_DAY_S = 86400


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Inside, this process and the processes that it starts write their temporary files below one folder, deleted at the end.

    The folders of processes of this host that have ended are deleted first.
    """
    parent = tempfile.gettempdir()
    sweep(Path(parent))
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
    Path(folder, OWNER).write_text(this_process(), encoding="utf-8")
    directory, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    try:
        yield Path(folder)
    finally:
        tempfile.tempdir = directory
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Delete the folders of processes of this host that have ended, and day-old ones whose process is unknown."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or deleted by a process that started at the same time
            owner = folder / OWNER
            is_old = time.time() - folder.stat().st_mtime > _DAY_S
            if has_died(owner.read_text(encoding="utf-8")) if owner.exists() else is_old:
                shutil.rmtree(folder, ignore_errors=True)
