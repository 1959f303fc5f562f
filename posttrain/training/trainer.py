"""Code shared by SFT and DPO: the trainer's arguments, and writing the trained model as a checkpoint."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback

from posttrain.chat.template import Chat
from posttrain.compat.transformers_internals import attention_implementation
from posttrain.config import DpoSection, ModelSection, TrainSection
from posttrain.errors import UserError
from posttrain.forward.attention import KERNELS
from posttrain.forward.flat import FlatCollator, announce, use_flat_batches
from posttrain.forward.routers import has_balance_loss
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.models.loading import Model
from posttrain.models.memory import Shape, loaded_gib
from posttrain.models.precision import PRECISIONS, compute_dtype, free_gib, is_16_bit
from posttrain.models.step_memory import StepSize, training_gib
from posttrain.models.stored_settings import StoredSettings
from posttrain.training.resume.resumable_trainer import ResumableTrainer, Resume
from posttrain.training.resume.training_checkpoints import Resumption, TrainingCheckpoints
from posttrain.training.saving import Trained, save_trained
from posttrain.training.sharding import gather, keep_precision, sharding_arguments
from posttrain.training.splitting import MEMORY_ERRORS, is_out_of_memory
from posttrain.training.stopping import EarlyStopping
from posttrain.training.training_progress import follow, silence_known_warnings

FILL = 0.8
"""Share of the free memory that a step may need before gradient checkpointing is turned on."""
OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}


@dataclass(frozen=True)
class TrainingJob:
    """Inputs of a training that SFT and DPO have in common."""

    base: Base
    model: ModelSection
    seed: int
    dest: Path
    """Empty folder for the checkpoint."""
    callbacks: tuple[TrainerCallback, ...] = ()
    checkpoints: TrainingCheckpoints | None = None
    """Storage of training checkpoints; None: an interrupted training starts again from the beginning."""
    work: Path | None = None
    """Folder that the trainer writes to. Set, like `resumption`, while the training runs, and the same for all its processes."""
    resumption: Resumption | None = None

    @property
    def start(self) -> Path | None:
        """Return the training checkpoint to resume from."""
        return self.resumption.start if self.resumption else None


class OutOfMemory(Exception):
    """Memory ran out in the first step. Smaller micro-batches may fit."""


def training_arguments(section: TrainSection, job: TrainingJob, model: Model, has_validation: bool) -> dict[str, Any]:
    """Return keyword arguments for TRL's SFTConfig and DPOConfig. None is left to a default of TRL that differs from ours.

    Args:
        model: the loaded model that is trained.

    Raises:
        UserError: the optimizer needs hardware that this machine lacks.
    """
    if section.optimizer == "adamw_8bit" and not (
        torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes")
    ):
        raise UserError(
            "optimizer: adamw_8bit needs a CUDA GPU and bitsandbytes, which this machine lacks: set it to adamw, or run on a "
            "GPU with `pip install -e '.[gpu]'`"
        )
    _check_fp16(section, job.model)
    silence_known_warnings()
    return {
        "output_dir": str(job.work),
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
        "gradient_checkpointing": needs_checkpointing(section, job.model, model),
        "bf16": compute_dtype(job.model) == torch.bfloat16,
        "fp16": compute_dtype(job.model) == torch.float16,
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "eval_strategy": "steps" if has_validation else "no",
        "eval_steps": section.eval_steps,
        "logging_steps": section.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "seed": job.seed,
        "router_aux_loss_coef": _balance_weight(section, job.model, model),
        **sharding_arguments(section.sharding),
    }


def _check_fp16(section: TrainSection, model: ModelSection) -> None:
    """Check that the loss can be scaled, without which small gradients are 0 in fp16."""
    if compute_dtype(model) != torch.float16:
        return
    if not torch.cuda.is_available():
        raise UserError("model.precision: fp16 needs a CUDA GPU: set it to fp32, or to bf16 on a CPU with AMX")
    if section.sharding != "none":
        raise UserError(
            f"sharding: {section.sharding} does not support fp16, which this GPU needs in place of bf16: set model.precision to "
            "fp32, or use GPUs with bf16"
        )


def needs_checkpointing(section: TrainSection, model_section: ModelSection, model: Model) -> bool:
    """Return whether to use gradient checkpointing: as set, else if the activations would not fit. Prints the choice.

    It is on if the weights are sharded. Otherwise processes with different amounts of free memory could choose differently.
    """
    if section.gradient_checkpointing != "auto":
        return section.gradient_checkpointing
    if section.sharding != "none":
        return True
    narrow, full = is_16_bit(model_section), model_section.method == "full"
    n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    n_base = model.num_parameters() - (0 if full else n_trained)
    shape = Shape.of(model.config.get_text_config().to_dict(), n_base, n_trained // model_section.lora.rank)
    if shape is None:
        return False
    sequences_per_row = 2 if isinstance(section, DpoSection) else 1
    n_tokens = section.batch_size * sequences_per_row * section.max_length
    size = StepSize(n_tokens, n_tokens, narrow, on_gpu=False)  # the context of a GPU is in memory already
    needed = training_gib(section, model_section, shape, size, gradient_checkpointing=False)
    needed -= loaded_gib(model_section, shape, narrow and not full)
    free = free_gib()
    needs = needed > FILL * free
    print(
        f"{section.stage.upper()}: {section.effective_batch_size} rows per step "
        f"({section.gradient_accumulation_steps} x {section.batch_size}) in {PRECISIONS[compute_dtype(model_section)]}, at most "
        f"about {max(0.0, needed):.1f} GiB in addition to the weights, {free:.1f} GiB free: gradient checkpointing "
        f"{'on' if needs else 'off'}"
    )
    return needs


def train_in_fp32(model: Model) -> None:
    """Keep what is trained in fp32: TRL casts adapters on a 4-bit base to bf16, where most of DPO's updates round to nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def prepare(trainer: Trainer, section: ModelSection) -> str:
    """Keep what a trainer trains in fp32, give it flat batches if its model supports them, and return the layout in words."""
    train_in_fp32(trainer.model)
    padded = use_flat_batches(trainer.model, section, trains=True)
    announce(padded)
    if padded:
        return f"padded: {padded}"
    trainer.data_collator = FlatCollator()
    return f"flat, {KERNELS[attention_implementation(trainer.model)]}"


def _balance_weight(section: TrainSection, model_section: ModelSection, model: Model) -> float:
    """Return the weight of the load-balancing loss: as set, else the model's own in SFT, and 0 in DPO, which starts at ln 2."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    weight = model_section.router_aux_loss_coef
    if weight and not has_balance_loss(inner):
        raise UserError(
            f"model.router_aux_loss_coef is {weight:g}, but {inner.config.get_text_config().model_type} models have no "
            "load-balancing loss: remove the setting"
        )
    if weight is not None:
        return weight
    own = getattr(inner.config.get_text_config(), "router_aux_loss_coef", 0.0) or 0.0
    return 0.0 if isinstance(section, DpoSection) or not has_balance_loss(inner) else float(own)


@dataclass(frozen=True)
class TrainingSetup:
    """A trainer that is ready to train, and what its checkpoint will record."""

    trainer: ResumableTrainer
    chat: Chat
    job: TrainingJob
    stage: Literal["sft", "dpo", "verifier"]
    parent: Checkpoint | None
    """The checkpoint that training starts from; None for the base."""
    counts: dict[str, int]
    """Numbers of rows, kept with the checkpoint's metrics."""
    batches: str
    """How batches are laid out, as `prepare` returned it."""
    stored: StoredSettings
    """The settings of the model as it was loaded."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the manifest."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files of the checkpoint: text by name."""


def train_and_seal(setup: TrainingSetup) -> Checkpoint:
    """Train to the end and write the checkpoint.

    Raises:
        UserError: the loss is NaN or infinite, or memory ran out after the first step.
        OutOfMemory: memory ran out in the first step.
    """
    trainer, job, stage = setup.trainer, setup.job, setup.stage
    follow(trainer, stage.upper())
    keep_precision(trainer, compute_dtype(job.model))
    loss = _train(setup)
    if not math.isfinite(loss):
        raise UserError(
            f"{stage}: the training loss is {loss}, so nothing is saved: lower {stage}.learning_rate, or raise "
            f"{stage}.warmup_steps"
        )
    gather(trainer)
    if not trainer.is_world_process_zero():  # the first process writes for all
        trainer.accelerator.wait_for_everyone()
        return Checkpoint.load(job.dest)
    # DPO goes on with the adapter of its parent; a verifier has an adapter of its own, over the parent's.
    not_the_base = ("full", "adapter") if stage == "verifier" else ("full",)
    merges = setup.parent is not None and setup.parent.manifest.kind in not_the_base
    kind = save_trained(Trained(trainer.model, setup.chat, job.base, setup.stored, merges), job.dest)
    for name, text in setup.files.items():
        (job.dest / name).write_text(text, encoding="utf-8")
    history = [{key: float(value) for key, value in entry.items()} for entry in trainer.state.log_history]
    sealed = seal(
        job.dest,
        history,
        stage=stage,
        kind=kind,
        base=job.base,
        parent=setup.parent.digest if setup.parent else None,
        template=setup.chat.template,
        template_kwargs=dict(setup.chat.settings.kwargs),
        template_date=setup.chat.settings.day if setup.chat.has_clock else None,
        stop_ids=setup.chat.stop_ids,
        beta=getattr(trainer, "beta", None),
        batches=setup.batches,
        metrics=_summary(history, trainer, setup.counts),
        **setup.about,
    )
    trainer.accelerator.wait_for_everyone()
    return sealed


def _train(setup: TrainingSetup) -> float:
    """Return the mean training loss, after training from the start or from where an earlier attempt was interrupted."""
    trainer, job, name = setup.trainer, setup.job, setup.stage
    saving: AbstractContextManager[None] = nullcontext()
    if job.resumption:
        resume = Resume(trainer, job.resumption, name.upper(), job.callbacks)
        trainer.add_callback(resume)
        saving = resume.until_saved()
    if job.resumption and job.start:
        print(f"{name.upper()} goes on from step {job.resumption.start_step}: training checkpoint {job.start.name}")
    try:
        with saving:
            return float(trainer.train(resume_from_checkpoint=job.start).training_loss)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        if trainer.state.global_step == (job.resumption.start_step if job.resumption else 0):
            raise OutOfMemory(str(error).splitlines()[0]) from error
        raise UserError(
            f"{name}: out of memory after step {trainer.state.global_step}, on a batch with longer rows than before: lower "
            f"{name}.batch_size and raise {name}.gradient_accumulation_steps by the same factor, or set "
            f"{name}.gradient_checkpointing to true"
        ) from error


def _summary(history: list[dict[str, float]], trainer: Trainer, counts: dict[str, int]) -> dict[str, float]:
    """Return the figures that describe a training: first and last losses, steps, kept weights, tokens, counts."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    figures: dict[str, float] = {"n_steps": trainer.state.global_step, **counts}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStopping) and callback.kept_step is not None:
            figures["kept_step"] = callback.kept_step
    if losses:
        figures |= {"first_loss": losses[0], "last_loss": losses[-1]}
    if validation:
        figures["validation_loss"] = validation[-1]
    if tokens := [entry["num_tokens"] for entry in history if "num_tokens" in entry]:
        figures["n_train_tokens"] = tokens[-1]
    return figures
