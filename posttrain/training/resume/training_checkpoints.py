"""Training checkpoints in the artifact store: upload, search, verification and deletion."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
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

from posttrain.errors import Preempted
from posttrain.models.checkpoint import file_digest

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
N_KEPT = 2
LEAST_S, MOST_S, COST_FACTOR = 20.0, 600.0, 50.0


class TrainingManifest(BaseModel):
    """List of the files of a training checkpoint. Uploaded last, so a folder without a manifest is incomplete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, str]
    """sha256 of every file except the manifest, by its path."""


@dataclass(frozen=True)
class TrainingCheckpoints:
    """The training checkpoints of one training, in a file store.

    Attributes:
        files: returns the store's file system. Called for each use, because a file system may hold keys that expire.
        folder: path in the store. Its last part is a digest of everything the training depends on, so that it holds no
            checkpoints of other data, settings or code.
        interval_s: seconds between two checkpoints; 0 writes one after every step, as fast as they can be stored; None: as
            `Resumption.is_due` decides.
    """

    files: Callable[[], AbstractFileSystem]
    folder: str
    interval_s: float | None = None

    def store(self, written: Path, step: int) -> str:
        """Upload a folder as the checkpoint of a step, delete all but the last two, and return the new one's name."""
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
        """Download the newest complete checkpoint and compare every file with its digest; None if there is none.

        Raises:
            OSError: the store cannot be read.
        """
        files = self.files()
        for name in self._names(files):
            try:
                return self._fetch(files, name, into / name)
            except FileNotFoundError:
                continue  # no manifest: the upload was interrupted
            except (ValidationError, _Damaged) as error:
                logger.warning(
                    "The training checkpoint %s/%s is damaged (%s). The previous one is used.",
                    self.folder, name, str(error).splitlines()[0],
                )  # fmt: skip
        return None

    @contextmanager
    def in_use(self, work: Path) -> Iterator[tuple[Resumption, Upload]]:
        """Inside, a training can resume from the newest checkpoint and store new ones. A signal is passed on at the end.

        Args:
            work: folder into which the trainer writes.

        Raises:
            OSError: the store cannot be read.
        """
        upload = Upload(self, work)
        try:
            try:
                yield Resumption(self.interval_s, self.fetch_newest(work / "start")), upload
            finally:
                upload.wait()
        except Preempted as preempted:
            os.kill(os.getpid(), preempted.number)  # for the handler that was set before
            raise

    def delete(self) -> None:
        """Delete all checkpoints of this training, whose result is stored elsewhere."""
        files = self.files()
        if files.exists(self.folder):
            files.rm(self.folder, recursive=True)

    def _fetch(self, files: AbstractFileSystem, name: str, into: Path) -> Path:
        manifest = TrainingManifest.model_validate_json(files.cat_file(f"{self.folder}/{name}/{MANIFEST}"))
        for relative, digest in manifest.files.items():
            if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
                raise _Damaged(f"{relative} is outside of the checkpoint's folder")
            path = into / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                files.get_file(f"{self.folder}/{name}/{relative}", str(path))
            except FileNotFoundError as error:
                raise _Damaged(f"{relative} is missing") from error
            if file_digest(path) != digest:
                raise _Damaged(f"{relative} does not match its digest")
        return into

    def _names(self, files: AbstractFileSystem) -> list[str]:
        """Return the names of all checkpoints, incomplete ones included, newest first."""
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
                files.rm_file(
                    f"{self.folder}/{name}/{MANIFEST}"
                )  # first: without it the checkpoint counts as incomplete
            files.rm(f"{self.folder}/{name}", recursive=True)


class _Damaged(Exception):
    """The files of a checkpoint are not those that were written."""


def training_key(*about: object) -> str:
    """Return the sha256 of plain values that a training depends on, which names the folder of its checkpoints."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Resumption:
    """The interval between checkpoints, and the one to resume from."""

    interval_s: float | None
    start: Path | None
    """Local folder of the checkpoint to resume from."""

    def is_due(self, lost_s: float, cost_s: float) -> bool:
        """Return whether to write a checkpoint.

        Without a set interval, one is written when an interruption would lose so much work that writing adds at most 2% to
        it, between `LEAST_S` and `MOST_S` after the previous one.

        Args:
            lost_s: seconds of work since the previous checkpoint.
            cost_s: seconds for which training stands still while a checkpoint is written.
        """
        if self.interval_s is not None:
            return lost_s >= self.interval_s
        return lost_s >= min(MOST_S, max(LEAST_S, COST_FACTOR * cost_s))

    @property
    def start_step(self) -> int:
        """Number of steps before the checkpoint."""
        return int(self.start.name.split("-")[1]) if self.start else 0


class Upload(TrainerCallback):
    """Upload checkpoints in the background. A failed upload loses the checkpoint but does not stop the training."""

    def __init__(self, checkpoints: TrainingCheckpoints, work: Path) -> None:
        self._checkpoints, self._work = checkpoints, work
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training-checkpoint")

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the upload of this step's folder."""
        written = self._work / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and written.exists():
            self._worker.submit(self._store, written, state.global_step)

    def _store(self, written: Path, step: int) -> None:
        try:
            self._checkpoints.store(written, step)
        except Exception as error:  # noqa: BLE001 (each kind of store raises its own exceptions)
            logger.warning(
                "The training checkpoint of step %d was not stored in %s (%s: %s). Training continues. If it is interrupted, it "
                "resumes from the previous checkpoint.",
                step, self._checkpoints.folder, type(error).__name__, str(error).splitlines()[0] if str(error) else "",
            )  # fmt: skip
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def wait(self) -> None:
        """Wait until all uploads have ended."""
        self._worker.shutdown()
