"""Training checkpoints: an interrupted training continues from the last one and ends with the same result.

A checkpoint holds weights, optimizer, schedule, random states, position in the data, and metrics that are not logged yet. It
is written to the local disk and uploaded in the background. Every later attempt of the same training resumes from it: a retry
of the step, an attempt on another machine, or another run.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.compat.transformers_internals import (
    LossSoFar,
    OpenTrainer,
    average_over_all_steps,
    read_loss,
    restore_loss,
)
from posttrain.compat.trl_internals import read_metrics, restore_metrics
from posttrain.errors import Preempted
from posttrain.training.resume.training_checkpoints import Resumption
from posttrain.training.sharding import is_sharded, load_zero_shares, save_shares

logger = logging.getLogger(__name__)

BYTES_PER_WEIGHT, BYTES_PER_S = 12, 500e6
"""Size of a checkpoint (weights and both moments of AdamW in fp32), and a disk's speed, before the first one is written."""
_CARRIED = "carried-{}.json"
"""Metrics that a process measured since the last log; the number is that of the process."""


class KeptInCheckpoints(TrainerCallback):
    """A callback with state that belongs into training checkpoints."""

    def keep_in(self, folder: Path) -> None:
        """Write the state into a training checkpoint. Called in the first process."""
        raise NotImplementedError


class ResumableTrainer(OpenTrainer):
    """Mixin for TRL's trainers: checkpoints include the metrics since the last log; a failed write does not stop training."""

    evaluating = False
    """Whether the checkpoint is of a step whose validation has begun and must be repeated."""

    def write_checkpoint(self, model: Any) -> None:
        """Write a training checkpoint, complete or not at all."""
        if self.control.should_training_stop:
            return  # the final checkpoint of the stage follows
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        metrics, n_tokens = read_metrics(self)
        carried = {
            "n_processes": self.args.world_size,
            "evaluating": self.evaluating,
            "loss": asdict(read_loss(self)),
            "metrics": metrics,
            "n_tokens": n_tokens,
        }
        failed = False
        try:
            super().write_checkpoint(model)
            (folder / _CARRIED.format(self.args.process_index)).write_text(json.dumps(carried), encoding="utf-8")
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that is not needed
            if self.is_world_process_zero():
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, KeptInCheckpoints):
                        callback.keep_in(folder)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises any of these
            logger.warning(
                "The training checkpoint of step %d was not written to %s (%s). Training continues. If it is interrupted, it "
                "resumes from the previous checkpoint.", self.state.global_step, folder.parent, str(error).splitlines()[0],
            )  # fmt: skip
            failed = True
        # After this line all processes have written. A checkpoint that lacks a part of one process is not uploaded.
        if _any_process(self, failed) and self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)

    def save_model(self, output_dir: str | None = None, **options: Any) -> None:
        """Save the weights, unless they are sharded: then they are written once, with the optimizer's state."""
        if not is_sharded(self):
            Trainer.save_model(self, output_dir, **options)

    def write_optimizer(self, folder: str) -> None:
        """Write the state of optimizer and schedule, in a format of our own if it is sharded."""
        if not is_sharded(self):
            super().write_optimizer(folder)
            return
        save_shares(self, folder)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(folder) / "scheduler.pt")

    def prepare_training(self, max_steps: int, loader: Any, start: Any) -> Any:
        """Prepare the training and load the checkpoint `start`. Transformers would look for DeepSpeed's own files."""
        by_zero = self.is_deepspeed_enabled
        prepared = super().prepare_training(max_steps, loader, None if by_zero else start)
        if by_zero and start is not None:
            load_zero_shares(self, start)
            self.read_optimizer(start)  # with DeepSpeed only the schedule
            for group, learning_rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = learning_rate
        return prepared

    def restore_carried(self, start: Path) -> None:
        """Restore the metrics that were measured since the last log before a checkpoint."""
        path = start / _CARRIED.format(self.args.process_index)
        carried = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        average_over_all_steps(self)
        self.evaluating = carried.get("evaluating", False)
        if carried.get("n_processes") != self.args.world_size:
            return  # another number of processes: each measured its own rows
        restore_loss(self, LossSoFar(**carried["loss"]))
        restore_metrics(self, carried["metrics"], carried["n_tokens"])


class Resume(TrainerCallback):
    """Write training checkpoints when they are due or on SIGTERM or Ctrl-C, and continue a training from one."""

    def __init__(
        self, trainer: ResumableTrainer, resumption: Resumption, name: str, loggers: Iterable[TrainerCallback]
    ):
        self._trainer, self._about, self._name, self._loggers = trainer, resumption, name, loggers
        self._last_s = time.monotonic()
        n_trained = sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad)
        self._cost_s = n_trained * BYTES_PER_WEIGHT / BYTES_PER_S  # measured from the first checkpoint on
        self._signal = 0

    @contextmanager
    def until_saved(self) -> Iterator[None]:
        """Inside, SIGTERM and Ctrl-C first cause a checkpoint. The handlers that were set before are restored at the end.

        A second signal ends the process at once, unless the launcher of several processes sends it: it repeats the first one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread can handle signals
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self._signal and self._trainer.accelerator.num_processes == 1:
                os._exit(128 + number)
            if not self._signal and self._trainer.is_world_process_zero():
                print(
                    f"\n{self._name}: stopping after this step, to save it. Press Ctrl-C again to stop at once",
                    flush=True,
                )
            self._signal = self._signal or number

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Repeat earlier logs for the loggers, and finish an interrupted validation."""
        if self._about.start is None:
            return
        self._trainer.restore_carried(self._about.start)
        now = state.global_step
        for entry in list(state.log_history):
            state.global_step = entry["step"]
            for callback in self._loggers:
                callback.on_log(args, state, control, logs={k: v for k, v in entry.items() if k != "step"})
        state.global_step = now
        if self._trainer.evaluating:
            self._trainer.evaluate()
            self._trainer.evaluating = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Request a checkpoint if one is due, unless the previous one is still being uploaded."""
        lost_s = time.monotonic() - self._last_s
        due = self._about.is_due(lost_s, self._cost_s) and not any(
            Path(args.output_dir).glob("checkpoint-*")  # deleted after the upload
        )
        if _any_process(self._trainer, (due and state.is_world_process_zero) or bool(self._signal)):
            self._last_s = time.monotonic()
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the training after a signal, unless this was its last step."""
        self._cost_s = time.monotonic() - self._last_s
        self._last_s = time.monotonic()
        if not control.should_training_stop and _any_process(self._trainer, bool(self._signal)):
            # Of several processes, some may not have received the signal.
            raise Preempted(f"{self._name} stopped at step {state.global_step}, saved", self._signal or signal.SIGTERM)

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """After a signal during a validation, write a checkpoint from before it: the validation may take too long."""
        if self._trainer.is_in_train and _any_process(self._trainer, bool(self._signal)):
            self._trainer.evaluating = True
            self._trainer.write_checkpoint(model)
            self._trainer.callback_handler.on_save(self._trainer.args, state, control)


def _any_process(trainer: Trainer, true: bool) -> bool:
    """Return whether `true` is True in any process. All processes must call this at the same time."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return true
    return bool(accelerator.reduce(torch.tensor(float(true), device=accelerator.device), "sum") > 0)
