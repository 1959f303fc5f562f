"""Trainings in processes of their own that tests kill. A fork server imports this module, so that each starts at once."""

import gc
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 (imported once instead of in each attempt)
import torch
import torch._dynamo
import transformers.models.llama.modeling_llama  # noqa: F401
import trl
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from transformers import Trainer, TrainerCallback

from posttrain.config import DpoSection, ModelSection, SftSection
from posttrain.data.stored import Preferences
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.tracking import Tracker, metrics_callback
from posttrain.training import stopping
from posttrain.training.dpo import PairTrainer, train_dpo
from posttrain.training.reference import ReferenceLogps
from posttrain.training.resume.training_checkpoints import TrainingCheckpoints
from posttrain.training.sft import CompletionTrainer
from posttrain.training.trainer import TrainingJob
from support import databases  # noqa: F401 (so that attempts do not wait for the disk either)
from support.stages import sft_on

trl.DPOTrainer, trl.SFTTrainer  # noqa: B018 (TRL imports its trainers when they are first named)
gc.freeze()  # what is imported is no garbage: attempts need not look through it


@dataclass(frozen=True)
class Training:
    """A training. All attempts of it get the same values."""

    name: str
    section: SftSection | DpoSection
    base: Base
    model: ModelSection
    preferences: Preferences
    folder: Path
    """Folder of the store and of each attempt's result."""
    reference: ReferenceLogps | None = None
    sft: Checkpoint | None = None
    tracking_uri: str = ""

    @property
    def checkpoints(self) -> TrainingCheckpoints:
        """Checkpoints after every step."""
        return TrainingCheckpoints(local_files, str(self.folder / "store" / "training"), interval_s=0)


def local_files() -> AbstractFileSystem:
    return LocalFileSystem(auto_mkdir=True)


def attempt(training: Training, dest: Path, trap: str = "") -> None:
    """Train from the start, or from the last checkpoint of an earlier attempt."""
    torch.set_num_threads(1)
    callbacks: list[TrainerCallback] = []
    if trap:
        globals()[trap](callbacks)
    if training.tracking_uri:
        with Tracker(training.tracking_uri, "resume", training.name, training.name).stage(training.name) as run:
            train(training, dest, (*callbacks, metrics_callback(run)))
    else:
        train(training, dest, tuple(callbacks))


def train(training: Training, dest: Path, callbacks: tuple[TrainerCallback, ...]) -> Checkpoint:
    job = TrainingJob(training.base, training.model, 0, dest, callbacks, training.checkpoints)
    if isinstance(training.section, SftSection):
        return sft_on(training.preferences, training.section, job)
    assert training.reference
    assert training.sft
    return train_dpo(training.reference, training.sft, training.section, job)


def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


class AtStep(TrainerCallback):
    """Send this process a signal at an event of a step."""

    def __init__(self, event: str, step: int, number: int) -> None:
        def act(args, state, control, **kwargs):
            if state.global_step == step:
                die(number)

        setattr(self, event, act)


def in_a_step(callbacks):
    callbacks.append(AtStep("on_substep_end", 4, signal.SIGKILL))


def in_validation(callbacks):
    callbacks.append(AtStep("on_prediction_step", 8, signal.SIGKILL))


def preempted_in_a_step(callbacks):
    callbacks.append(AtStep("on_substep_end", 5, signal.SIGTERM))


def preempted_in_validation(callbacks):
    callbacks.append(AtStep("on_prediction_step", 8, signal.SIGTERM))


def in_writing_a_checkpoint(callbacks):
    whole = Trainer._save_optimizer_and_scheduler

    def half(self, folder):
        if self.state.global_step == 5:
            Path(folder, "optimizer.pt").write_bytes(b"half")
            die()
        whole(self, folder)

    Trainer._save_optimizer_and_scheduler = half


def in_uploading_a_checkpoint(callbacks):
    whole = LocalFileSystem.put_file

    def half(self, source, target, **kwargs):
        whole(self, source, target, **kwargs)
        if "step-00000006" in target and target.endswith("optimizer.pt"):
            die()

    LocalFileSystem.put_file = half


def with_a_store_that_refuses(callbacks):
    def refuse(self, source, target, **kwargs):
        raise PermissionError("Access Denied")

    LocalFileSystem.put_file = refuse


def with_a_store_that_fails_half_an_upload(callbacks):
    whole = LocalFileSystem.put_file

    def fail(self, source, target, **kwargs):
        if target.endswith("scheduler.pt"):
            raise OSError("Connection reset by peer")
        whole(self, source, target, **kwargs)

    LocalFileSystem.put_file = fail


def with_a_full_disk(callbacks):
    """Let no file of more than 100 kB be written: the adapter has 69 kB, the optimizer twice that."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def with_no_room_for_the_best(callbacks):
    def refuse(tensors, path):
        raise OSError(28, "No space left on device")

    stopping.save_file = refuse  # type: ignore[assignment]


def with_little_memory(callbacks):
    """Raise an out-of-memory error for more than two rows at once."""
    for kind in (PairTrainer, CompletionTrainer):
        whole = kind.training_step

        def step(self, model, inputs, n_items=None, whole=whole):
            if self.args.per_device_train_batch_size > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return whole(self, model, inputs, n_items)

        kind.training_step = step  # type: ignore[method-assign]


def with_no_memory(callbacks):
    def step(self, model, inputs, n_items=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    CompletionTrainer.training_step = step  # type: ignore[method-assign]


def with_memory_that_runs_out(callbacks):
    whole = CompletionTrainer.training_step

    def step(self, model, inputs, n_items=None):
        if self.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return whole(self, model, inputs, n_items)

    CompletionTrainer.training_step = step  # type: ignore[method-assign]
