"""Callbacks that end a training which no longer improves or has diverged."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.config import DpoSection, PairSection, TrainSection
from posttrain.errors import UserError
from posttrain.training.resume.resumable_trainer import KeptInCheckpoints
from posttrain.training.sharding import has_shares, put_back, trained_weights

BEST = "best_so_far.safetensors"
DIVERGED_TIMES = 3.0
N_LOGS = 10
"""Number of logs over which the loss is averaged to detect divergence."""


@dataclass(frozen=True)
class Goal:
    """What early stopping follows."""

    stage: str
    """For messages: `SFT`, `DPO` or `VERIFIER`."""
    patience: int
    threshold: float = 0.0
    """Smallest improvement that counts against patience."""
    metric: str = "eval_loss"

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is better."""
        return self.metric != "eval_loss"

    @property
    def words(self) -> str:
        """The metric in words."""
        return "validation accuracy" if self.higher_is_better else "validation loss"


class EarlyStopping(KeptInCheckpoints):
    """Stop after `patience` validations without improvement, and restore the best weights.

    The callback of transformers needs a checkpoint with optimizer on disk at every validation. This one keeps the best
    trained weights (the adapter's, or all) in main memory: in every process, or only in the first if they are sharded. They
    are part of training checkpoints.
    """

    def __init__(self, goal: Goal, start: Path | None = None) -> None:
        self.goal = goal
        self.start = start  # the training checkpoint to resume from
        self.best_step = 0
        self.kept_step: int | None = None
        """The step whose weights were restored; None if those of the last step are the best."""
        self._best_score = self._to_beat = -math.inf
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
        """Keep the weights if they are the best so far, and count the validations without improvement."""
        if self._is_best(metrics or {}, state.global_step):
            self._best = trained_weights(model)
        control.should_training_stop |= self._n_worse >= self.goal.patience

    def _is_best(self, metrics: dict[str, float], step: int) -> bool:
        score = metrics[self.goal.metric] * (1 if self.goal.higher_is_better else -1)
        improved = score > self._to_beat + self.goal.threshold
        self._n_worse = 0 if improved else self._n_worse + 1
        self._to_beat = score if improved else self._to_beat
        if not score > self._best_score:
            return False
        self._best_score, self.best_step = score, step
        return True

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
                self._is_best(entry, entry["step"])
        if self.start and (self.start / BEST).exists() and (state.is_world_process_zero or not has_shares(model)):
            self._best = load_file(self.start / BEST)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Restore the best weights."""
        if self.best_step in (0, state.global_step):
            return
        put_back(model, self._best)
        self.kept_step = self.best_step
        print(f"{self.goal.stage} keeps the weights of step {self.best_step}, which have the best {self.goal.words} "
              f"({abs(self._best_score):.4f})")  # fmt: skip


class StopAtAccuracy(TrainerCallback):
    """Stop when the mean training accuracy of the last `N_LOGS` logs exceeds a ceiling."""

    def __init__(self, ceiling: float) -> None:
        self.ceiling = ceiling
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
        if "rewards/accuracies" not in (logs or {}):
            return
        self._last.append(float((logs or {})["rewards/accuracies"]))
        mean = sum(self._last) / len(self._last)
        if len(self._last) == N_LOGS and mean > self.ceiling and not control.should_training_stop:
            control.should_training_stop = True
            print(
                f"DPO stops at step {state.global_step}: its training accuracy of {mean:.1%} exceeds dpo.stop_at_accuracy"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """On resuming, read the earlier logs."""
        self._last.extend(e["rewards/accuracies"] for e in state.log_history if "rewards/accuracies" in e)


class StopOnDivergence(TrainerCallback):
    """End the training without saving when its loss is NaN or infinite, or far above its first value.

    Raises:
        UserError: at the log that shows it.
    """

    def __init__(self, stage: str = "dpo") -> None:
        self.stage = stage
        self._remedy = (
            f"nothing is saved; lower {stage}.learning_rate, or raise {stage}.warmup_steps ({stage}.stop_on_divergence: false "
            "disables this check)"
        )
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
        # In fp16 the scale of the loss is too large at times: such a step is left out, and the scale is lowered.
        scaled = args is not None and args.fp16
        for name in ("loss",) if scaled else ("loss", "grad_norm"):
            if not math.isfinite(value := float(logs.get(name, 0.0))):
                raise UserError(f"{self.stage}: {name} is {value} at step {state.global_step}: {self._remedy}")
        self._see(float(logs["loss"]))
        assert self._first is not None
        mean = sum(self._last) / len(self._last)
        if len(self._last) == N_LOGS and mean > DIVERGED_TIMES * max(abs(self._first), 1e-3):
            raise UserError(
                f"{self.stage}: the loss has diverged: its mean over the last {N_LOGS} logs up to step {state.global_step} is "
                f"{mean:.4g}, the first was {self._first:.4g}: {self._remedy}"
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


def stopping_callbacks(
    section: TrainSection, *, has_validation: bool, start: Path | None = None
) -> list[TrainerCallback]:
    """Return the callbacks for the settings of a training.

    Args:
        start: the training checkpoint to resume from.

    Raises:
        UserError: early stopping is set, but there are no validation pairs.
    """
    dpo = section if isinstance(section, DpoSection) else None
    stage = section.stage
    callbacks: list[TrainerCallback] = []
    if isinstance(section, PairSection) and section.stop_on_divergence:
        callbacks.append(StopOnDivergence(stage))
    if dpo and dpo.stop_at_accuracy is not None:
        callbacks.append(StopAtAccuracy(dpo.stop_at_accuracy))
    patience = section.early_stopping_patience
    if patience is not None:
        if not has_validation:
            raise UserError(
                f"{stage}.early_stopping_patience {patience}: early stopping needs validation pairs, and there are none: raise "
                "data.validation_size, or remove the setting"
            )
        metric = "eval_loss"
        if isinstance(section, PairSection) and section.early_stopping_metric == "accuracy":
            metric = "eval_rewards/accuracies" if dpo else "eval_accuracy"
        goal = Goal(stage.upper(), patience, section.early_stopping_threshold, metric)
        callbacks.append(EarlyStopping(goal, start))
    return callbacks
