"""Private parts of transformers: Trainer's checkpoints, the loss between two logs, and the rotary function of an attention."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import Trainer


class OpenTrainer(Trainer):
    """Trainer whose steps around a checkpoint are methods with public names, which a subclass can extend.

    Reason: Trainer's callbacks run after a checkpoint is written. They cannot add to it, survive a full disk, or write the
    optimizer of a sharded model in another format.
    Read against: transformers 5.20 to 5.24 (`Trainer._save_checkpoint`, `_save_optimizer_and_scheduler`,
    `_load_optimizer_and_scheduler`, `_prepare_for_training`) and TRL 1.15 and 1.16, whose `_save_checkpoint` only adds a
    model card.
    Remove when: Trainer takes an object that saves and loads its state.
    """

    def write_checkpoint(self, model: Any) -> None:
        """Write model, optimizer, schedule, random states and trainer state; skips the model card that TRL adds."""
        Trainer._save_checkpoint(self, model, None)

    def write_optimizer(self, folder: str) -> None:
        """Write the state of the optimizer and of the schedule."""
        Trainer._save_optimizer_and_scheduler(self, folder)

    def read_optimizer(self, folder: str) -> None:
        """Load the state of the optimizer and of the schedule."""
        self._load_optimizer_and_scheduler(folder)

    def prepare_training(self, max_steps: int, loader: Any, start: Any) -> Any:
        """Create optimizer and schedule, wrap the model, and load the checkpoint `start` if there is one."""
        return super()._prepare_for_training(max_steps, loader, start)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.write_checkpoint(model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.write_optimizer(output_dir)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        return self.prepare_training(max_steps, train_dataloader, resume_from_checkpoint)


@dataclass(frozen=True)
class LossSoFar:
    """The training loss in the parts in which Trainer keeps it."""

    since_log: float
    """Sum over the steps since the last log."""
    until_log: float
    """Sum over all steps up to the last log."""
    last_logged_step: int


def read_loss(trainer: Any) -> LossSoFar:
    """Return the loss that a trainer has added up.

    Reason: Trainer starts from 0 when it resumes, so the loss of the steps since the last log would be lost.
    Read against: transformers 5.20 to 5.24 (`_tr_loss`, `_total_loss_scalar` and `_globalstep_last_logged`).
    Remove when: Trainer saves the three in its checkpoints.
    """
    return LossSoFar(trainer._tr_loss.item(), trainer._total_loss_scalar, trainer._globalstep_last_logged)


def restore_loss(trainer: Any, loss: LossSoFar) -> None:
    """Set what `read_loss` returned. Reason, versions and condition for removal are the same."""
    trainer._tr_loss.fill_(loss.since_log)
    trainer._total_loss_scalar = loss.until_log
    trainer._globalstep_last_logged = loss.last_logged_step


def average_over_all_steps(trainer: Any) -> None:
    """Make the training loss that Trainer returns at the end the mean over all steps, not only those since a resume.

    Reason: the loss that `restore_loss` sets is of all steps, while Trainer divides by the steps of this process.
    Read against: transformers 5.20 to 5.24 (`_initial_global_step`).
    Remove when: `restore_loss` is removed.
    """
    trainer._initial_global_step = 0


def attention_implementation(model: Any) -> str:
    """Return the name of the model's attention function.

    Reason: `set_attn_implementation` is public; reading the name back is not.
    Read against: transformers 5.20 to 5.24 (`PreTrainedConfig._attn_implementation`).
    Remove when: transformers has a public property for it.
    """
    return str(model.config._attn_implementation)


def with_one_gpu(arguments: Any) -> Any:
    """Return training arguments whose process trains on one GPU, even if it sees several.

    Reason: Trainer would wrap the model in `nn.DataParallel`, and TRL refuses that. Several GPUs have one process each.
    Read against: transformers 5.20 to 5.24 (`TrainingArguments._n_gpu`, which the property `n_gpu` returns).
    Remove when: `nn.DataParallel` is removed from Trainer.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


ROTARY = "apply_rotary_pos_emb"


def rotary_function(attention: type) -> Callable[..., Any] | None:
    """Return the function by which a class of attention turns queries and keys; None if it calls none by the usual name.

    Reason: the function is a global of the family's module, which `forward` calls. It is no part of the class.
    Read against: transformers 5.20 to 5.24 (`apply_rotary_pos_emb` in the modules of the model families).
    Remove when: the function is an attribute of the attention.
    """
    forward: Any = attention.forward  # type: ignore[attr-defined]
    if ROTARY not in getattr(getattr(forward, "__code__", None), "co_names", ()):
        return None
    function: Callable[..., Any] | None = forward.__globals__.get(ROTARY)
    return function


def forward_with_rotary(attention: type, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `forward` of a class of attention with another function that turns queries and keys.

    The copy has the same code and other globals, so that models which keep the class are not affected.

    Reason, versions and condition for removal are the same as for `rotary_function`.
    """
    own: Any = attention.forward  # type: ignore[attr-defined]
    code = types.FunctionType(
        own.__code__, {**own.__globals__, ROTARY: function}, own.__name__, own.__defaults__, own.__closure__
    )
    code.__kwdefaults__ = own.__kwdefaults__
    return code
