"""Ends a training that gets no better, or that has gone wrong."""

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
"""Logged steps over which the loss is averaged before it is called diverged."""


class EarlyStopping(KeptInCheckpoints):
    """Stops after so many validations without a better loss, and ends with the weights that had the best one.

    Not transformers' own callback: that one needs a checkpoint with optimizer on disk at every validation. The best
    weights that are trained (an adapter's, or all) are kept in main memory, by every process that has them whole or, where
    each has a share, by the first; and they go into training checkpoints.
    """

    def __init__(self, patience: int, start: Path | None = None) -> None:
        self.patience = patience
        self.start = start  # the training checkpoint to go on from
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
        """Keeps the weights if they are the best so far, else counts."""
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
        """Adds the best weights to a training checkpoint."""
        if self._best:
            save_file(self._best, folder / BEST)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Where a training goes on: counts what was validated before, and takes back the best weights."""
        for entry in state.log_history:
            if "eval_loss" in entry:
                self._is_best(entry["eval_loss"], entry["step"])
        if self.start and (self.start / BEST).exists() and (state.is_world_process_zero or not has_shares(model)):
            self._best = load_file(self.start / BEST)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Puts the best weights back."""
        if self.best_step in (0, state.global_step):
            return
        put_back(model, self._best)
        print(f"DPO keeps the weights of step {self.best_step}, whose validation loss {self.best_loss:.4f} is the best")


class StopOnDivergence(TrainerCallback):
    """Ends the training, with nothing saved, once its loss is no number or far above where it began.

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
        """Looks at a training step's log."""
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
                f"dpo: the loss has diverged: {mean:.4g} over the last {N_LOGS} logs up to step {state.global_step}, "
                f"{self._first:.4g} at first: {_REMEDY}"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where a training goes on: looks at what was logged before."""
        for entry in state.log_history:
            if "loss" in entry:
                self._see(entry["loss"])

    def _see(self, loss: float) -> None:
        self._last.append(loss)
        self._first = loss if self._first is None else self._first


_REMEDY = (
    "nothing is saved; lower dpo.learning_rate, or raise dpo.warmup_steps (dpo.stop_on_divergence: false lets it go on)"
)


def stopping_callbacks(dpo: DpoSection, *, has_validation: bool, start: Path | None = None) -> list[TrainerCallback]:
    """The callbacks that the settings ask for.

    Args:
        start: the training checkpoint to go on from.

    Raises:
        UserError: early stopping without validation pairs.
    """
    callbacks: list[TrainerCallback] = [StopOnDivergence()] if dpo.stop_on_divergence else []
    if dpo.early_stopping_patience is not None:
        if not has_validation:
            raise UserError(
                f"dpo.early_stopping_patience {dpo.early_stopping_patience}: there are no validation pairs to stop by: raise "
                "data.validation_size, or drop the setting"
            )
        callbacks.append(EarlyStopping(dpo.early_stopping_patience, start))
    return callbacks
