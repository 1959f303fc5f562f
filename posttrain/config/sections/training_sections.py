"""Settings of SFT and DPO training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.layouts import INSTRUCTION_FORMATS
from posttrain.config.sections.data_section import Source, check_weights
from posttrain.config.sections.passes import Passes
from posttrain.config.sections.section import Interval, Section

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
# Losses that TRL computes from the chosen-rejected difference alone; only these support divergences other than reverse KL.
DIVERGENCE_LOSSES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}


LEARNING_RATE = "peak learning rate of AdamW; full fine-tuning needs about a tenth of the rate for LoRA"


class TrainSection(Section):
    """Settings that all trainings share."""

    sequences_per_row: ClassVar[int] = 1
    """Number of responses in a row of the training data."""

    learning_rate: float = Field(gt=0, le=1, description=LEARNING_RATE)
    epochs: float = Field(1.0, gt=0, description="passes over the training data; ignored if max_steps is set")
    max_steps: int | None = Field(
        None, ge=1, description="total number of optimizer steps; null: as many as epochs needs"
    )
    batch_size: int = Field(
        8, ge=1, description="rows per micro-batch, of all processes together; higher is faster and takes more memory"
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="micro-batches per optimizer step; higher takes more time but no more memory"
    )
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="number of data-parallel processes on one machine; auto: one per GPU, or one on a CPU"
    )
    sharding: Literal["none", "fsdp", "zero2", "zero3"] = Field(
        "none",
        description="fsdp and zero3 (DeepSpeed) shard weights, gradients and optimizer state across processes; zero2 shards "
        "gradients and optimizer state only; sharding saves memory and adds communication",
    )
    max_length: int = Field(
        1024, ge=8, description="maximum number of tokens of prompt and response; longer responses are truncated"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw, or adamw_8bit (bitsandbytes), which needs less memory and CUDA"
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1: decay rate of the gradient's moving average")
    adam_beta2: float = Field(
        0.999, ge=0, lt=1, description="AdamW beta2: decay rate of the squared gradient's moving average"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay coefficient")
    lr_schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="learning rate schedule; linear and cosine decay to 0 by the last step"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up of the learning rate from 0")
    max_grad_norm: float = Field(1.0, gt=0, description="clip gradients to this global norm")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto",
        description="recompute activations in the backward pass: less memory, about a third more time; auto: only with sharding or "
        "if a step would not fit into memory otherwise",
    )
    eval_steps: Interval = Field(
        0.2, description="interval between validations: a number of steps, or a fraction of the training"
    )
    logging_steps: int = Field(1, ge=1, description="interval between logged training metrics, in steps")
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="stop after this many validations without improvement and restore the best weights; null: no early stopping",
    )
    early_stopping_threshold: float = Field(
        0.0,
        ge=0,
        description="smallest improvement that early stopping counts; higher stops earlier on a plateau",
    )

    @model_validator(mode="after")
    def validate_early_stopping(self) -> TrainSection:
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError(
                "early_stopping_threshold is set but early_stopping_patience is not, so it has no effect: set both or remove it"
            )
        return self

    @model_validator(mode="after")
    def validate_processes(self) -> TrainSection:
        if self.sharding != "none" and self.processes == 1:
            raise ValueError(
                f"sharding {self.sharding} needs more than one process, but processes is 1: raise processes or remove sharding"
            )
        return self

    @model_validator(mode="after")
    def validate_optimizer(self) -> TrainSection:
        # https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1633
        if self.sharding != "none" and self.optimizer == "adamw_8bit":
            raise ValueError(
                f"optimizer adamw_8bit does not support sharded weights (sharding {self.sharding}): set optimizer to adamw"
            )
        return self

    @model_validator(mode="after")
    def validate_warmup(self) -> TrainSection:
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} is not below max_steps {self.max_steps}, so the warm-up would not end: lower it"
            )
        return self

    @property
    def stage(self) -> str:
        """Name of the training in the config and in messages: `sft`, `dpo` or `verifier`."""
        return type(self).__name__.removesuffix("Section").lower()

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step, of all processes together."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def passes(self) -> Passes:
        """The length of the training."""
        return Passes(rows_per_step=self.effective_batch_size, epochs=self.epochs, max_steps=self.max_steps)


def _as_list(dataset: Source | list[Source] | None) -> list[Source]:
    if dataset is None:
        return []
    return dataset if isinstance(dataset, list) else [dataset]


class SftSection(TrainSection):
    """Supervised fine-tuning with the loss on completion tokens only."""

    dataset: Source | list[Source] | None = Field(
        None,
        description="instruction dataset to train on (alpaca, sharegpt, messages and others), or a list of them, with weights as "
        "in data.sources; null: the chosen responses",
    )
    learning_rate: float = Field(3.0e-4, gt=0, le=1, description=LEARNING_RATE)
    loss_on: Literal["last", "all"] = Field(
        "last",
        description="answers to train on in conversations of several turns: the last one, or every answer of the assistant",
    )

    @field_validator("dataset")
    @classmethod
    def validate_dataset(cls, dataset: Source | list[Source] | None) -> Source | list[Source] | None:
        sources = _as_list(dataset)
        for source in sources:
            if source.format not in ("auto", *INSTRUCTION_FORMATS):
                raise ValueError(
                    f"format {source.format} contains pairs, not instructions: move the dataset to data.sources"
                )
        if isinstance(dataset, list) and not dataset:
            raise ValueError("the list is empty: name a dataset, or set null to train on the chosen responses")
        if len(sources) == 1 and sources[0].weight is not None:
            raise ValueError("weight has no meaning for a single dataset: use limit instead")
        check_weights(sources)
        return dataset

    @property
    def datasets(self) -> list[Source]:
        """The instruction datasets; empty to train on the chosen responses."""
        return _as_list(self.dataset)


class Lengths(Section):
    """Token limits of a pair. A stored reference is valid only for the limits that it was scored with."""

    max_length: int
    max_prompt_length: int


class PairSection(TrainSection):
    """Settings that trainings on pairs share."""

    sequences_per_row: ClassVar[int] = 2

    max_prompt_length: int = Field(
        512,
        ge=1,
        description="maximum number of prompt tokens, at most max_length; longer prompts are truncated from the left and counted",
    )
    early_stopping_metric: Literal["loss", "accuracy"] = Field(
        "loss",
        description="metric on the validation pairs that early stopping follows; accuracy: share of pairs with a positive margin",
    )
    stop_on_divergence: bool = Field(
        True,
        description="stop if the loss or gradient norm is NaN or infinite, or if the mean loss of ten logs exceeds three times "
        "the first",
    )

    @model_validator(mode="after")
    def validate_early_stopping_metric(self) -> PairSection:
        if self.early_stopping_metric != "loss" and self.early_stopping_patience is None:
            raise ValueError(
                "early_stopping_metric is set but early_stopping_patience is not, so it has no effect: set both or remove it"
            )
        return self

    @property
    def lengths(self) -> Lengths:
        """The token limits of a pair."""
        return Lengths(max_length=self.max_length, max_prompt_length=self.max_prompt_length)

    @model_validator(mode="after")
    def validate_lengths(self) -> PairSection:
        if self.max_prompt_length > self.max_length:
            raise ValueError(
                f"max_prompt_length {self.max_prompt_length} is above max_length {self.max_length}: lower it to leave room for a "
                "response"
            )
        return self


class DpoSection(PairSection):
    """Direct preference optimization (Rafailov et al. 2023) with any of TRL's losses."""

    start: str | None = Field(
        None,
        coerce_numbers_to_str=True,
        description="model that DPO starts from (finetuning_type dpo): a Hub model, a folder with a "
        "model or a checkpoint, a model version (`demo:production`) or a checkpoint version (`sft_checkpoint:3` or `3`)",
    )
    reference: Literal["start", "sft"] = Field(
        "start",
        description="frozen model that the policy is held to; start: the model that DPO starts from; sft: the SFT model that "
        "dpo.start descends from, so that several rounds of DPO do not add up to a large divergence",
    )
    learning_rate: float = Field(5.0e-6, gt=0, le=1, description=LEARNING_RATE)
    beta: float = Field(
        0.1,
        gt=0,
        le=10,
        description="strength of the constraint to the SFT model; higher stays closer to it; 0.01 to 0.5 is usual",
    )
    loss_type: LossType | list[LossType] = Field(
        "sigmoid", description="loss function, by TRL's name, or a list of losses to add up"
    )
    loss_weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="weight of each loss in loss_type; null: 1 each"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="for robust: assumed share of flipped labels; for exo_pair: smoothing, about 1e-3",
    )
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = Field(
        "reverse_kl", description="divergence from the reference (f-DPO)"
    )
    f_alpha_divergence_coef: float = Field(0.5, description="alpha of alpha_divergence")
    discopop_tau: float = Field(0.05, gt=0, description="temperature of the discopop loss")
    use_weighting: bool = Field(False, description="weight each pair by its probability under the policy (WPO)")
    stop_at_accuracy: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="stop as soon as the mean training accuracy of ten logs exceeds this, for example 0.8: human annotators rarely "
        "agree more, so higher values mean that DPO memorises their errors; null: no ceiling",
    )

    @property
    def losses(self) -> list[str]:
        """The loss types as a list, also for a single loss."""
        return [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)

    @model_validator(mode="after")
    def validate_loss_weights(self) -> DpoSection:
        if not self.losses:
            raise ValueError("loss_type is empty: name at least one loss")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.losses):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} values for {len(self.losses)} losses: set one weight for each loss"
            )
        return self

    @model_validator(mode="after")
    def validate_label_smoothing(self) -> DpoSection:
        losses = set(self.losses)
        if "exo_pair" in losses and self.label_smoothing == 0:
            raise ValueError("loss_type exo_pair needs label_smoothing above 0: set it, e.g. to 1.0e-3 as in its paper")
        smoothed = losses & {"robust", "exo_pair", "aot", "aot_unpaired"}
        if self.label_smoothing > 0 and not smoothed:
            raise ValueError(
                f"label_smoothing has no effect on loss_type {'+'.join(self.losses)} in TRL: use loss_type robust, or set it to 0"
            )
        return self

    @model_validator(mode="after")
    def validate_divergence(self) -> DpoSection:
        if self.f_divergence_type != "reverse_kl" and (bad := set(self.losses) - DIVERGENCE_LOSSES):
            raise ValueError(
                f"f_divergence_type {self.f_divergence_type} is not defined for {', '.join(sorted(bad))}: use reverse_kl"
            )
        return self

    @model_validator(mode="after")
    def validate_weighting(self) -> DpoSection:
        if self.use_weighting and (bad := set(self.losses) & {"aot", "aot_unpaired"}):
            raise ValueError(
                f"use_weighting cannot be used with {', '.join(sorted(bad))}, which sorts the pairs: set it to false"
            )
        # TRL 1.16 multiplies these two losses in place, which makes autograd raise.
        if self.use_weighting and (bad := set(self.losses) & {"hinge", "sft"}):
            raise ValueError(
                f"use_weighting cannot be used with {', '.join(sorted(bad))}, for which TRL computes no gradient: set it to false"
            )
        return self
