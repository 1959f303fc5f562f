"""Training checkpoints: a training that was cut off goes on where it was, and ends as if nothing had happened.

What a training needs to go on (weights, optimizer, schedule, random states, position in the data, metrics not yet logged)
is written beside the training, uploaded by a thread of its own, and found again by whoever trains the same thing: another
attempt of the step, another machine, another run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

import torch
from fsspec import AbstractFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.models.checkpoint import file_digest
from posttrain.training.sharding import is_sharded, load_zero_shares, save_shares

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
N_KEPT = 2
_CARRIED = "carried-{}.json"
"""What a process has measured since the last log, by the number of the process."""


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


class KeptInCheckpoints(TrainerCallback):
    """A callback with something that a training which goes on needs."""

    def keep_in(self, folder: Path) -> None:
        """Writes it into a training checkpoint; called in the first process."""
        raise NotImplementedError


class ResumableTrainer(Trainer):
    """Mixed into TRL's trainers: a checkpoint also holds what was measured since the last log, and may fail.

    Written for transformers 5.23, whose own checkpoints lose the loss since the last log, and TRL 1.16, which keeps the other
    metrics in `_metrics` and `_total_train_tokens` and writes a model card into each.
    """

    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int
    evaluating = False
    """Whether the checkpoint to be written is of a step whose validation has begun and is to be done again."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.control.should_training_stop:
            return  # the end of it: the training's result follows at once
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        carried: dict[str, Any] = {
            "n_processes": self.args.world_size,
            "evaluating": self.evaluating,
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "metrics": self._metrics["train"],
            "n_tokens": int(self._total_train_tokens),
        }
        failed = False
        try:
            Trainer._save_checkpoint(self, model, trial)  # past TRL's, which only adds the card
            (folder / _CARRIED.format(self.args.process_index)).write_text(json.dumps(carried), encoding="utf-8")
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing needs
            if self.is_world_process_zero():
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, KeptInCheckpoints):
                        callback.keep_in(folder)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # each of the writers has its own word for a full disk
            logger.warning(
                "The training checkpoint of step %d was not written to %s (%s). Training goes on; should it be cut off, it begins "
                "again from the checkpoint before.", self.state.global_step, folder.parent, str(error).splitlines()[0],
            )  # fmt: skip
            failed = True
        # Past this all have written, and the first process uploads it; what one could not write is no checkpoint.
        if _any_process(self, failed) and self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Sharded weights are written once, beside the optimizer's state."""
        if not is_sharded(self):
            Trainer.save_model(self, output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self):
            Trainer._save_optimizer_and_scheduler(self, output_dir)
            return
        save_shares(self, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        by_zero = self.is_deepspeed_enabled  # transformers would look for DeepSpeed's own files
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, None if by_zero else resume_from_checkpoint
        )
        if by_zero and resume_from_checkpoint is not None:
            load_zero_shares(self, resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)  # the schedule alone
            for group, learning_rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = learning_rate
        return prepared

    def carry_on(self, start: Path) -> None:
        """Takes up what was measured since the last log before a checkpoint was written."""
        path = start / _CARRIED.format(self.args.process_index)
        carried = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._initial_global_step = 0  # figures of the whole training are of all of it
        self.evaluating = carried.get("evaluating", False)
        if carried.get("n_processes") != self.args.world_size:
            return  # other processes share the rows now: each had measured its own
        self._tr_loss.fill_(carried["loss"])
        self._total_loss_scalar = carried["total_loss"]
        self._globalstep_last_logged = carried["last_logged"]
        self._metrics = {"train": defaultdict(list, carried["metrics"]), "eval": defaultdict(list)}
        self._total_train_tokens = carried["n_tokens"]


class Resume(TrainerCallback):
    """Writes training checkpoints when they are due or the machine is wanted back, and takes a training up from one."""

    def __init__(
        self, trainer: ResumableTrainer, resumption: Resumption, name: str, loggers: Iterable[TrainerCallback]
    ):
        self._trainer, self._about, self._name, self._loggers = trainer, resumption, name, loggers
        self._last_s = time.monotonic()
        self._wanted_back = threading.Event()

    @contextmanager
    def until_saved(self) -> Iterator[None]:
        """Inside, SIGTERM makes a checkpoint before it does what it would have done."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are not for this thread
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self._wanted_back.set()

        before = signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells again what was logged before, and finishes a validation that was cut off."""
        if self._about.start is None:
            return
        self._trainer.carry_on(self._about.start)
        now = state.global_step
        for entry in list(state.log_history):
            state.global_step = entry["step"]
            for callback in self._loggers:
                callback.on_log(args, state, control, logs={k: v for k, v in entry.items() if k != "step"})
        state.global_step = now
        if self._trainer.evaluating:
            self._trainer._evaluate(None, None)
            self._trainer.evaluating = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for a checkpoint where one is due, unless the one before is still being uploaded."""
        due = time.monotonic() - self._last_s >= self._about.interval_s and not any(
            Path(args.output_dir).glob("checkpoint-*")  # it is still being uploaded
        )
        if _any_process(self._trainer, (due and state.is_world_process_zero) or self._wanted_back.is_set()):
            self._last_s = time.monotonic()
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends the training if the machine is wanted back and it is not at its end anyway."""
        if not control.should_training_stop and _any_process(self._trainer, self._wanted_back.is_set()):
            raise Preempted(f"{self._name}: interrupted at step {state.global_step}, from which it can go on")

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """In the midst of a validation, which may take longer than there is time, writes a checkpoint from before it."""
        if self._trainer.is_in_train and _any_process(self._trainer, self._wanted_back.is_set()):
            self._trainer.evaluating = True
            self._trainer._save_checkpoint(model, None)
            self._trainer.callback_handler.on_save(self._trainer.args, state, control)


def _any_process(trainer: Trainer, true: bool) -> bool:
    """Whether it is true in any of the processes, which all must ask at the same time."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return true
    return bool(accelerator.reduce(torch.tensor(float(true), device=accelerator.device), "sum") > 0)
