"""Progress display of a training: one bar on a terminal, few lines in a log file."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

from posttrain.progress import disable_library_bars, progress_bar

SHOWN = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin", "eval_loss": "validation loss"}


class TrainingProgress(ProgressCallback):
    """One bar for a whole training with the latest metrics, instead of a dict per log as in transformers."""

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
        """Show no second bar for validation."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if self.training_bar is not None and logs:
            shown = {name: f"{float(logs[key]):.3f}" for key, name in SHOWN.items() if key in logs}
            self.training_bar.set_postfix(shown, refresh=False)


def silence_known_warnings() -> None:
    """Ignore the warning about `gradient_checkpointing`, which the settings of TRL cause.

    TRL turns it on by default, so it must be turned off by its old name until TRL uses the new one.
    """
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)


def follow(trainer: Trainer, label: str) -> None:
    """Replace a trainer's progress display by this one."""
    disable_library_bars()
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TrainingProgress(label))
