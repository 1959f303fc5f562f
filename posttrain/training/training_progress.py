"""Progress that a person can follow on a terminal, and that fills no log file."""

from __future__ import annotations

import warnings
from typing import Any

import datasets
import transformers
from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

from posttrain.progress import progress_bar as progress_bar

SHOWN = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin", "eval_loss": "validation loss"}

transformers.utils.logging.disable_progress_bar()  # of loading and saving weights
datasets.disable_progress_bars()  # of rows that are selected
# TRL turns it on by default, so it must be turned off by the name that TRL knows, until TRL takes the new one.
warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)


class TrainingProgress(ProgressCallback):
    """One bar for a whole training, with the latest metrics behind it, where transformers prints a dict a step."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.training_bar = progress_bar(state.max_steps, self.label, " steps", done=state.global_step)
        self.current_step = state.global_step

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """No second bar for validation."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if self.training_bar is not None and logs:
            shown = {name: f"{float(logs[key]):.3f}" for key, name in SHOWN.items() if key in logs}
            self.training_bar.set_postfix(shown, refresh=False)


def follow(trainer: Trainer, label: str) -> None:
    """Gives a trainer this progress display in place of its own."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TrainingProgress(label))
