"""Training checkpoints: a training that was cut off goes on where it was, and ends as if nothing had happened.

What a training needs to go on (weights, optimizer, schedule, random states, position in the data, metrics not yet logged)
is written beside the training, uploaded by a thread of its own, and found again by whoever trains the same thing: another
attempt of the step, another machine, another run.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.training.resume.training_checkpoints import Preempted, Resumption
from posttrain.training.sharding import is_sharded, load_zero_shares, save_shares

logger = logging.getLogger(__name__)

_CARRIED = "carried-{}.json"
"""What a process has measured since the last log, by the number of the process."""


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
