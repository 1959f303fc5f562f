"""How SFT and DPO train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.data_section import Source
from posttrain.config.layouts import INSTRUCTION_FORMATS
from posttrain.config.section import Interval, Section

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
# The losses that TRL defines for the chosen-rejected difference alone, and so for other divergences than reverse KL.
DIVERGENCE_LOSSES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}


LEARNING_RATE = "higher: faster, then unstable; full training stands about a tenth of what adapters do"


class TrainSection(Section):
    """What SFT and DPO have in common."""

    learning_rate: float = Field(gt=0, le=1, description=LEARNING_RATE)
    epochs: float = Field(1.0, gt=0, description="passes over the training rows; ignored where max_steps is set")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimisation steps")
    batch_size: int = Field(8, ge=1, description="rows worked on at once; higher: faster, more memory")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches to one step; costs time, not memory")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="that share the rows of a step, on one machine; auto: one a GPU, or a single one on a CPU"
    )
    sharding: Literal["none", "fsdp", "zero2", "zero3"] = Field(
        "none",
        description="fsdp, or DeepSpeed's zero3: each process keeps its share of weights, gradients and optimizer state: less "
        "memory, more traffic; zero2: all weights, and its share of the others",
    )
    max_length: int = Field(1024, ge=8, description="tokens of prompt and response; the rest of a response is cut off")
    optimizer: Literal["adamw", "adamw_8bit"] = Field("adamw", description="adamw_8bit saves memory; needs CUDA")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="memory of the gradient; higher: smoother, slower to turn")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="memory of its size; lower: follows changes sooner")
    weight_decay: float = Field(0.0, ge=0, description="higher: pulls weights towards 0 more strongly")
    lr_schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="linear and cosine fall to 0 over the training"
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled down to this norm")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto",
        description="saves memory, costs about a third more time; auto: where a step would not fit without, "
        "and with sharding",
    )
    eval_steps: Interval = Field(
        0.2, description="how often validation is measured: a number of steps, or a share of the training"
    )
    logging_steps: int = Field(1, ge=1, description="how often the training metrics are logged")

    @model_validator(mode="after")
    def shards_have_processes(self) -> TrainSection:
        if self.sharding != "none" and self.processes == 1:
            raise ValueError(
                f"sharding {self.sharding} shares a model out among processes, and processes is 1: raise it, or drop sharding"
            )
        return self

    @model_validator(mode="after")
    def the_optimizer_knows_shards(self) -> TrainSection:
        # https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1633
        if self.sharding != "none" and self.optimizer == "adamw_8bit":
            raise ValueError(
                f"optimizer adamw_8bit knows no weights that are shared out (sharding {self.sharding}): set it to adamw"
            )
        return self

    @model_validator(mode="after")
    def the_warm_up_ends(self) -> TrainSection:
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} is not below max_steps {self.max_steps}: the learning rate never arrives"
            )
        return self

    @property
    def effective_batch_size(self) -> int:
        """Rows to one optimisation step on one device."""
        return self.batch_size * self.gradient_accumulation_steps


class SftSection(TrainSection):
    """Supervised fine-tuning, on completion tokens only."""

    dataset: Source | None = Field(
        None,
        description="a separate instruction set (alpaca, sharegpt, messages and others); null: the chosen responses",
    )
    learning_rate: float = Field(3.0e-4, gt=0, le=1, description=LEARNING_RATE)

    @field_validator("dataset")
    @classmethod
    def the_dataset_holds_instructions(cls, dataset: Source | None) -> Source | None:
        if dataset and dataset.format not in ("auto", *INSTRUCTION_FORMATS):
            raise ValueError(f"format {dataset.format} holds pairs, not instructions: name it under data.sources")
        if dataset and dataset.weight is not None:
            raise ValueError("weight is a share of several sources, and the instruction set is one: use limit")
        return dataset


class Lengths(Section):
    """How many tokens of a pair are used: part of what a reference was scored on."""

    max_length: int
    max_prompt_length: int


class DpoSection(TrainSection):
    """Direct preference optimisation (Rafailov et al. 2023) with any of TRL's losses."""

    sft_checkpoint: str | None = Field(
        None,
        coerce_numbers_to_str=True,
        description="with finetuning_type dpo: where DPO starts, a folder or an artifact version (`sft_checkpoint:3`, `3`)",
    )
    learning_rate: float = Field(5.0e-6, gt=0, le=1, description=LEARNING_RATE)
    beta: float = Field(0.1, gt=0, le=10, description="higher: stays closer to the SFT model; 0.01 to 0.5 is usual")
    loss_type: LossType | list[LossType] = Field("sigmoid", description="one of TRL's losses, or several to be mixed")
    loss_weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="one weight a loss; null: 1 each"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="robust: share of flipped labels; exo_pair: about 1e-3"
    )
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = Field(
        "reverse_kl", description="how distance from the reference is measured (f-DPO)"
    )
    f_alpha_divergence_coef: float = Field(0.5, description="with alpha_divergence: its alpha")
    discopop_tau: float = Field(0.05, gt=0, description="with discopop: its temperature")
    use_weighting: bool = Field(False, description="weight pairs by their probability under the policy (WPO)")
    max_prompt_length: int = Field(
        512, ge=1, description="longer prompts lose their beginning, and are counted; at most max_length"
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="stop after this many validations (eval_steps) without a better loss, and keep the best weights",
    )
    stop_on_divergence: bool = Field(
        True, description="end at once when the loss is no number, or over ten logs three times what it was at first"
    )

    @property
    def lengths(self) -> Lengths:
        """What decides the tokens of a pair."""
        return Lengths(max_length=self.max_length, max_prompt_length=self.max_prompt_length)

    @property
    def losses(self) -> list[str]:
        """The loss types as a list."""
        return [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)

    @model_validator(mode="after")
    def the_prompt_fits(self) -> DpoSection:
        if self.max_prompt_length > self.max_length:
            raise ValueError(
                f"max_prompt_length {self.max_prompt_length} is above max_length {self.max_length}: no room for a response"
            )
        return self

    @model_validator(mode="after")
    def every_loss_has_a_weight(self) -> DpoSection:
        if not self.losses:
            raise ValueError("loss_type is empty: name at least one loss")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.losses):
            raise ValueError(f"loss_weights has {len(self.loss_weights)} values for {len(self.losses)} losses")
        return self

    @model_validator(mode="after")
    def smoothing_is_used(self) -> DpoSection:
        losses = set(self.losses)
        if "exo_pair" in losses and self.label_smoothing == 0:
            raise ValueError("loss_type exo_pair needs label_smoothing above 0 (its paper takes 1.0e-3)")
        smoothed = losses & {"robust", "exo_pair", "aot", "aot_unpaired"}
        if self.label_smoothing > 0 and not smoothed:
            raise ValueError(
                f"label_smoothing has no effect on loss_type {'+'.join(self.losses)} in TRL: take robust, or set it to 0"
            )
        return self

    @model_validator(mode="after")
    def the_divergence_is_defined(self) -> DpoSection:
        if self.f_divergence_type != "reverse_kl" and (bad := set(self.losses) - DIVERGENCE_LOSSES):
            raise ValueError(f"f_divergence_type {self.f_divergence_type} is not defined for {', '.join(sorted(bad))}")
        return self

    @model_validator(mode="after")
    def weighting_keeps_pairs_aligned(self) -> DpoSection:
        if self.use_weighting and (bad := set(self.losses) & {"aot", "aot_unpaired"}):
            raise ValueError(f"use_weighting cannot be used with {', '.join(sorted(bad))}, which sorts the pairs")
        # TRL 1.16 multiplies these two losses in place, which autograd refuses.
        if self.use_weighting and (bad := set(self.losses) & {"hinge", "sft"}):
            raise ValueError(f"use_weighting cannot be used with {', '.join(sorted(bad))}: TRL has no gradient for it")
        return self
