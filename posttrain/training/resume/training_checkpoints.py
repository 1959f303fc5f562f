"""Training checkpoints in the artifact store: written, found again, verified and deleted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import TrainerCallback, TrainerState

from posttrain.models.checkpoint import file_digest

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
N_KEPT = 2


class TrainingManifest(BaseModel):
    """What a training checkpoint holds. Uploaded last, so a folder without one is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, str]
    """sha256 of every file beside the manifest, by its path."""


@dataclass(frozen=True)
class TrainingCheckpoints:
    """The training checkpoints of one training, in a file store.

    Attributes:
        files: returns the store's file system; called for each use, as what a store hands out may hold keys that expire.
        folder: where in the store; its last part names the training by what it depends on, so that no checkpoint of other
            data, settings or code can lie there.
        interval_s: between two checkpoints; 0: one after every step, as fast as they can be stored.
    """

    files: Callable[[], AbstractFileSystem]
    folder: str
    interval_s: float = 600.0

    def store(self, written: Path, step: int) -> str:
        """Uploads a folder as the checkpoint of a step, whole or not at all, and returns its name; the last two are kept."""
        files, name = self.files(), f"step-{step:08d}-{uuid.uuid4().hex[:8]}"
        digests = {}
        for path in sorted(path for path in written.rglob("*") if path.is_file()):
            relative = path.relative_to(written).as_posix()
            digests[relative] = file_digest(path)
            files.put_file(str(path), f"{self.folder}/{name}/{relative}")
        manifest = TrainingManifest(files=digests)
        files.pipe_file(f"{self.folder}/{name}/{MANIFEST}", manifest.model_dump_json().encode())
        self._prune(files)
        return name

    def fetch_newest(self, into: Path) -> Path | None:
        """A copy of the newest whole checkpoint, every file compared with its digest; None where there is none.

        Raises:
            OSError: the store cannot be read.
        """
        files = self.files()
        for name in self._names(files):
            try:
                return self._fetch(files, name, into / name)
            except FileNotFoundError:
                continue  # no manifest: its upload was cut off
            except (ValidationError, _Damaged) as error:
                logger.warning(
                    "The training checkpoint %s/%s is torn or was changed (%s): the one before is used.",
                    self.folder, name, str(error).splitlines()[0],
                )  # fmt: skip
        return None

    @contextmanager
    def in_use(self, work: Path) -> Iterator[tuple[Resumption, Upload]]:
        """Inside, a training can go on from the newest and store further ones; a SIGTERM that it answered is passed on.

        Args:
            work: where the trainer writes.

        Raises:
            OSError: the store cannot be read.
        """
        upload = Upload(self, work)
        try:
            try:
                yield Resumption(self.interval_s, self.fetch_newest(work / "start")), upload
            finally:
                upload.wait()
        except Preempted:
            os.kill(os.getpid(), signal.SIGTERM)  # to whoever handled it before
            raise

    def delete(self) -> None:
        """Removes all of them: what was trained is stored elsewhere."""
        files = self.files()
        if files.exists(self.folder):
            files.rm(self.folder, recursive=True)

    def _fetch(self, files: AbstractFileSystem, name: str, into: Path) -> Path:
        manifest = TrainingManifest.model_validate_json(files.cat_file(f"{self.folder}/{name}/{MANIFEST}"))
        for relative, digest in manifest.files.items():
            if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
                raise _Damaged(f"{relative} lies outside of it")
            path = into / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                files.get_file(f"{self.folder}/{name}/{relative}", str(path))
            except FileNotFoundError as error:
                raise _Damaged(f"{relative} is missing") from error
            if file_digest(path) != digest:
                raise _Damaged(f"{relative} has another digest than when it was written")
        return into

    def _names(self, files: AbstractFileSystem) -> list[str]:
        """Of all that lie there, newest first."""
        files.invalidate_cache()
        if not files.exists(self.folder):
            return []
        names = (PurePosixPath(path).name for path in files.ls(self.folder, detail=False))
        return sorted((name for name in names if name.startswith("step-")), reverse=True)

    def _prune(self, files: AbstractFileSystem) -> None:
        names = self._names(files)
        whole = [name for name in names if files.exists(f"{self.folder}/{name}/{MANIFEST}")]
        for name in names[names.index(whole[N_KEPT - 1]) + 1 :] if len(whole) >= N_KEPT else ():
            if name in whole:
                files.rm_file(f"{self.folder}/{name}/{MANIFEST}")  # first, so that half a deletion leaves none
            files.rm(f"{self.folder}/{name}", recursive=True)


class _Damaged(Exception):
    """A checkpoint whose files are not those that were written."""


def training_key(*about: object) -> str:
    """sha256 over what a training depends on, which must be plain values: names the folder of its checkpoints."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Resumption:
    """What a training in progress is told of its checkpoints."""

    interval_s: float
    start: Path | None
    """The checkpoint to go on from, on this machine."""

    @property
    def start_step(self) -> int:
        """How many steps were done before."""
        return int(self.start.name.split("-")[1]) if self.start else 0


class Upload(TrainerCallback):
    """Stores what the trainer has written, beside the training; a store that fails costs the checkpoint and nothing else."""

    def __init__(self, checkpoints: TrainingCheckpoints, work: Path) -> None:
        self._checkpoints, self._work = checkpoints, work
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training-checkpoint")

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Hands the folder of this step to the thread."""
        written = self._work / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and written.exists():
            self._worker.submit(self._store, written, state.global_step)

    def _store(self, written: Path, step: int) -> None:
        try:
            self._checkpoints.store(written, step)
        except Exception as error:  # noqa: BLE001 (whatever library the store is made of raises its own kind)
            logger.warning(
                "The training checkpoint of step %d was not stored in %s (%s: %s). Training goes on; should it be cut off, it "
                "begins again from the checkpoint before.",
                step, self._checkpoints.folder, type(error).__name__, str(error).splitlines()[0] if str(error) else "",
            )  # fmt: skip
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def wait(self) -> None:
        """Returns once everything is stored, or has failed."""
        self._worker.shutdown()


class Preempted(BaseException):
    """The machine is wanted back, and what the training needs to go on is written. Not for `except Exception`."""
