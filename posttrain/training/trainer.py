"""What SFT and DPO share: the trainer's arguments, and how a trained model becomes a checkpoint."""

from __future__ import annotations

import importlib.util
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback

from posttrain.chat.template import Chat
from posttrain.compat.transformers_internals import attention_implementation
from posttrain.config import DpoSection, ModelSection, TrainSection
from posttrain.errors import UserError
from posttrain.forward.flat import FlatCollator, announce, use_flat_batches
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.models.loading import Model
from posttrain.models.memory import GIB, Shape, activations_gib, loaded_gib, weights_gib
from posttrain.models.precision import free_gib, uses_bf16
from posttrain.training.resume.resumable_trainer import ResumableTrainer, Resume
from posttrain.training.resume.training_checkpoints import Resumption, TrainingCheckpoints
from posttrain.training.sharding import gather, keep_precision, sharding_arguments
from posttrain.training.training_progress import follow, silence_known_warnings

FILL = 0.8
"""Share of the free memory that an estimate may fill before activations are computed again instead of kept."""
OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}


@dataclass(frozen=True)
class TrainingJob:
    """What every stage of training is told beside its own section."""

    base: Base
    model: ModelSection
    seed: int
    dest: Path
    """An empty folder for the checkpoint."""
    callbacks: tuple[TrainerCallback, ...] = ()
    checkpoints: TrainingCheckpoints | None = None
    """Where the training can be taken up again; None: what is cut off begins anew."""
    work: Path | None = None
    """Where the trainer writes; set, as what follows, while the training goes on, and the same for all of its processes."""
    resumption: Resumption | None = None

    @property
    def start(self) -> Path | None:
        """The training checkpoint to go on from."""
        return self.resumption.start if self.resumption else None


class OutOfMemory(Exception):
    """The first step did not fit; smaller micro-batches may."""


def training_arguments(section: TrainSection, stage: TrainingJob, model: Model, has_validation: bool) -> dict[str, Any]:
    """Keyword arguments for TRL's SFTConfig and DPOConfig, with nothing left to their surprising defaults.

    Args:
        model: what is trained, loaded.

    Raises:
        UserError: the optimizer needs hardware that is not there.
    """
    if section.optimizer == "adamw_8bit" and not (
        torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes")
    ):
        raise UserError(
            "optimizer: adamw_8bit needs a CUDA GPU and bitsandbytes, which this machine lacks: set it to adamw, or run on a "
            "GPU with `pip install -e '.[gpu]'`"
        )
    silence_known_warnings()
    return {
        "output_dir": str(stage.work),
        "learning_rate": section.learning_rate,
        "num_train_epochs": section.epochs,
        "max_steps": section.max_steps or -1,
        "per_device_train_batch_size": section.batch_size,
        "per_device_eval_batch_size": section.batch_size,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "max_length": section.max_length,
        "optim": OPTIMIZERS[section.optimizer],
        "adam_beta1": section.adam_beta1,
        "adam_beta2": section.adam_beta2,
        "weight_decay": section.weight_decay,
        "lr_scheduler_type": section.lr_schedule,
        "warmup_steps": section.warmup_steps,
        "max_grad_norm": section.max_grad_norm,
        "gradient_checkpointing": needs_checkpointing(section, stage.model, model),
        "bf16": uses_bf16(stage.model),
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "eval_strategy": "steps" if has_validation else "no",
        "eval_steps": section.eval_steps,
        "logging_steps": section.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "seed": stage.seed,
        **sharding_arguments(section.sharding),
    }


def needs_checkpointing(section: TrainSection, model_section: ModelSection, model: Model) -> bool:
    """Whether activations are computed again in the backward pass: as set, else where they would not fit. Says so.

    Where processes have shares of the weights it is on: one that had more free memory than another would wait for it.
    """
    if section.gradient_checkpointing != "auto":
        return section.gradient_checkpointing
    if section.sharding != "none":
        return True
    config = model.config.get_text_config()
    shape = Shape(model.num_parameters(), config.num_hidden_layers, config.hidden_size, 0)
    bf16 = uses_bf16(model_section)
    sequences_per_row = 2 if isinstance(section, DpoSection) else 1
    needed = activations_gib(section, shape, sequences_per_row, bf16, gradient_checkpointing=False)
    if model_section.method == "full":
        needed += weights_gib(section, model_section, shape, bf16) - loaded_gib(model_section, shape, bf16)
        needed += shape.n_parameters * 2 / GIB if bf16 else 0  # autocast's copies, which the backward pass needs
    free = free_gib()
    needs = needed > FILL * free
    print(
        f"{'DPO' if sequences_per_row == 2 else 'SFT'}: {section.effective_batch_size} rows a step "
        f"({section.gradient_accumulation_steps} x {section.batch_size}) in {'bf16' if bf16 else 'fp32'}, at most about "
        f"{max(0.0, needed):.1f} GiB beside the weights, {free:.1f} GiB are free: gradient checkpointing {'on' if needs else 'off'}"
    )
    return needs


def use_flat_rows(trainer: Trainer, section: ModelSection) -> str:
    """Gives a trainer flat batches where its model can take them; which it has, in words."""
    padded = use_flat_batches(trainer.model, section)
    announce(padded)
    if padded:
        return f"padded: {padded}"
    trainer.data_collator = FlatCollator()
    return f"flat, {attention_implementation(trainer.model).removeprefix('posttrain_')}"


def train_and_seal(
    trainer: ResumableTrainer,
    chat: Chat,
    stage: TrainingJob,
    name: Literal["sft", "dpo"],
    parent: Checkpoint | None,
    facts: dict[str, int],
    batches: str,
) -> Checkpoint:
    """Runs a trainer to its end and writes its checkpoint.

    Args:
        parent: the checkpoint that training started from.
        facts: counts to keep with the checkpoint's metrics.
        batches: what `use_flat_rows` returned.

    Raises:
        UserError: the loss is no longer a number, or memory has run out in the midst of training.
        OutOfMemory: in the first step.
    """
    follow(trainer, name.upper())
    keep_precision(trainer, uses_bf16(stage.model))
    loss = _train(trainer, stage, name)
    if not math.isfinite(loss):
        raise UserError(
            f"{name}: the loss is {loss}: nothing is saved; lower {name}.learning_rate, or raise its warmup_steps"
        )
    gather(trainer)
    if not trainer.is_world_process_zero():  # the first process writes for all
        trainer.accelerator.wait_for_everyone()
        return Checkpoint.load(stage.dest)
    model: Any = trainer.model
    kind: Literal["full", "adapter"] = "full"
    if isinstance(model, PeftModel):
        if parent is not None and parent.manifest.kind == "full":
            # The adapter belongs to the parent's weights: merged, the checkpoint depends on no other artifact.
            model = model.merge_and_unload()
        else:
            kind = "adapter"
            model.peft_config["default"].base_model_name_or_path = stage.base.id
            if isinstance(modules := model.peft_config["default"].target_modules, set):
                # PEFT writes a set in the order in which this process hashes: the same model would have many digests.
                model.peft_config["default"].target_modules = sorted(modules)
    stage.dest.mkdir(parents=True, exist_ok=True)
    if kind == "adapter":
        model.save_pretrained(stage.dest, selected_adapters=["default"])
        (stage.dest / "README.md").unlink(missing_ok=True)
    else:
        model.generation_config.eos_token_id = chat.stop_ids
        model.generation_config.pad_token_id = chat.tokenizer.pad_token_id
        model.save_pretrained(stage.dest)
    chat.tokenizer.save_pretrained(stage.dest)
    history = [{key: float(value) for key, value in entry.items()} for entry in trainer.state.log_history]
    sealed = seal(
        stage.dest,
        history,
        stage=name,
        kind=kind,
        base=stage.base,
        parent=parent.digest if parent else None,
        template=chat.template,
        stop_ids=chat.stop_ids,
        beta=getattr(trainer, "beta", None),
        batches=batches,
        metrics=_summary(history, trainer, facts),
    )
    trainer.accelerator.wait_for_everyone()
    return sealed


def _train(trainer: ResumableTrainer, stage: TrainingJob, name: str) -> float:
    """The mean training loss, after training from the start or from where an earlier attempt was cut off."""
    saving: AbstractContextManager[None] = nullcontext()
    if stage.resumption:
        resume = Resume(trainer, stage.resumption, name.upper(), stage.callbacks)
        trainer.add_callback(resume)
        saving = resume.until_saved()
    if stage.resumption and stage.start:
        print(f"{name.upper()} goes on from step {stage.resumption.start_step}: training checkpoint {stage.start.name}")
    try:
        with saving:
            return float(trainer.train(resume_from_checkpoint=stage.start).training_loss)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # A CPU's allocator has no exception of its own.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        if trainer.state.global_step == (stage.resumption.start_step if stage.resumption else 0):
            raise OutOfMemory(str(error).splitlines()[0]) from error
        raise UserError(
            f"{name}: out of memory after step {trainer.state.global_step}, in which shorter rows had room: lower "
            f"{name}.batch_size and raise gradient_accumulation_steps as much, or set gradient_checkpointing to true"
        ) from error


def _summary(history: list[dict[str, float]], trainer: Trainer, facts: dict[str, int]) -> dict[str, float]:
    """The figures that stand for a training: first and last losses, steps, tokens, and the given counts."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    figures: dict[str, float] = {"n_steps": trainer.state.global_step, **facts}
    if losses:
        figures |= {"first_loss": losses[0], "last_loss": losses[-1]}
    if validation:
        figures["validation_loss"] = validation[-1]
    if tokens := [entry["num_tokens"] for entry in history if "num_tokens" in entry]:
        figures["n_train_tokens"] = tokens[-1]
    return figures
