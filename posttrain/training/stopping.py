"""Callbacks that end a training which no longer improves or has diverged."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.config import DpoSection
from posttrain.errors import UserError
from posttrain.training.resume.resumable_trainer import KeptInCheckpoints
from posttrain.training.sharding import has_shares, put_back, trained_weights

BEST = "best_so_far.safetensors"
DIVERGED_TIMES = 3.0
N_LOGS = 10
"""Number of logs over which the loss is averaged to detect divergence."""


class EarlyStopping(KeptInCheckpoints):
    """Stop after `patience` validations without a lower loss, and restore the weights with the lowest loss.

    The callback of transformers needs a checkpoint with optimizer on disk at every validation. This one keeps the best
    trained weights (the adapter's, or all) in main memory: in every process, or only in the first if they are sharded. They
    are part of training checkpoints.
    """

    def __init__(self, patience: int, start: Path | None = None) -> None:
        self.patience = patience
        self.start = start  # the training checkpoint to resume from
        self.best_loss = math.inf
        self.best_step = 0
        self._n_worse = 0
        self._best: dict[str, torch.Tensor] = {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Keep the weights if the loss is the lowest so far, else count."""
        if self._is_best((metrics or {})["eval_loss"], state.global_step):
            self._best = trained_weights(model)
        control.should_training_stop |= self._n_worse >= self.patience

    def _is_best(self, loss: float, step: int) -> bool:
        if loss < self.best_loss:
            self.best_loss, self.best_step, self._n_worse = loss, step, 0
            return True
        self._n_worse += 1
        return False

    def keep_in(self, folder: Path) -> None:
        """Add the best weights to a training checkpoint."""
        if self._best:
            save_file(self._best, folder / BEST)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """On resuming, repeat the earlier validations and load the best weights."""
        for entry in state.log_history:
            if "eval_loss" in entry:
                self._is_best(entry["eval_loss"], entry["step"])
        if self.start and (self.start / BEST).exists() and (state.is_world_process_zero or not has_shares(model)):
            self._best = load_file(self.start / BEST)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Restore the best weights."""
        if self.best_step in (0, state.global_step):
            return
        put_back(model, self._best)
        print(
            f"DPO keeps the weights of step {self.best_step}, which has the lowest validation loss ({self.best_loss:.4f})"
        )


class StopOnDivergence(TrainerCallback):
    """End the training without saving when its loss is NaN or infinite, or far above its first value.

    Raises:
        UserError: at the log that shows it.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._last: deque[float] = deque(maxlen=N_LOGS)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the log of a training step."""
        if not logs or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(value := float(logs.get(name, 0.0))):
                raise UserError(f"dpo: {name} is {value} at step {state.global_step}: {_REMEDY}")
        self._see(float(logs["loss"]))
        assert self._first is not None
        mean = sum(self._last) / len(self._last)
        if len(self._last) == N_LOGS and mean > DIVERGED_TIMES * max(abs(self._first), 1e-3):
            raise UserError(
                f"dpo: the loss has diverged: its mean over the last {N_LOGS} logs up to step {state.global_step} is {mean:.4g}, "
                f"the first was {self._first:.4g}: {_REMEDY}"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On resuming, read the earlier logs."""
        for entry in state.log_history:
            if "loss" in entry:
                self._see(entry["loss"])

    def _see(self, loss: float) -> None:
        self._last.append(loss)
        self._first = loss if self._first is None else self._first


_REMEDY = "nothing is saved; lower dpo.learning_rate, or raise dpo.warmup_steps (dpo.stop_on_divergence: false disables this check)"


def stopping_callbacks(dpo: DpoSection, *, has_validation: bool, start: Path | None = None) -> list[TrainerCallback]:
    """Return the callbacks for the settings.

    Args:
        start: the training checkpoint to resume from.

    Raises:
        UserError: early stopping is set, but there are no validation pairs.
    """
    callbacks: list[TrainerCallback] = [StopOnDivergence()] if dpo.stop_on_divergence else []
    if dpo.early_stopping_patience is not None:
        if not has_validation:
            raise UserError(
                f"dpo.early_stopping_patience {dpo.early_stopping_patience}: early stopping needs validation pairs, and there are "
                "none: raise data.validation_size, or remove the setting"
            )
        callbacks.append(EarlyStopping(dpo.early_stopping_patience, start))
    return callbacks
