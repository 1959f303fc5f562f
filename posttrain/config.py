"""RunConfig: everything a run can be told, one section a step, checked before any work starts.

A section is the whole input of the steps that take it, so changing `dpo.beta` re-runs DPO and what follows, and nothing
before it. Every validator raises; none repairs.
"""

from __future__ import annotations

import difflib
import json
import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from posttrain.data.checks import REASONS, allowed_policies
from posttrain.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=0.5)]
Interval = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
# The losses that TRL defines for the chosen-rejected difference alone, and so for other divergences than reverse KL.
DIVERGENCE_LOSSES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}


class Section(BaseModel):
    """A group of settings. Unknown keys are errors, values cannot be changed once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def a_number_is_not_yes_or_no(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool) and not _takes_yes_or_no(annotation):
                raise ValueError(f"is {str(item).lower()}, which is a yes or no")
        return value


def _takes_yes_or_no(annotation: Any) -> bool:
    return annotation is bool or any(map(_takes_yes_or_no, get_args(annotation)))


# Every layout of rows, each a module of that name in posttrain/data/formats, in the order in which `auto` tries them: the more
# special before the more general.
PreferenceFormat = Literal[
    "shp", "oasst_messages", "oasst_trees", "ultrafeedback", "chatbot_arena", "pandalm", "llmbar", "two_answers",
    "qa_feedback", "graded_solutions", "scored_pair", "hh_rlhf", "conversational", "explicit", "implicit",
]  # fmt: skip
InstructionFormat = Literal["messages", "sharegpt", "self_instruct", "prompt_completion", "alpaca"]
INSTRUCTION_FORMATS = get_args(InstructionFormat)


class Source(Section):
    """One place that rows come from; a text stands for its `path` alone."""

    path: str = Field(
        min_length=1,
        description="`demo`, a file, a glob or a folder (JSONL, JSON, CSV, each also .gz or .zst, or Parquet), "
        "`s3://bucket/…` of these, a Hub dataset id, or hh-rlhf, oasst1, shp, ultrafeedback; `path:50000` reads that many rows",
    )
    format: Literal["auto", PreferenceFormat, InstructionFormat] = Field(
        "auto", description="layout of a row; `auto` recognises it from the columns and the first rows"
    )
    columns: dict[str, str] = Field(
        {}, description="our name: the file's name, e.g. `{prompt: question}`, where the columns are called otherwise"
    )
    revision: str | None = Field(None, description="Hub only: branch, tag or commit; what it resolved to is recorded")
    data_dir: str | None = Field(None, description="Hub only: folder inside the dataset repository")
    subset: str | None = Field(None, description="Hub only: name of the dataset's configuration")
    train_split: str = Field("train", description="name of the split that is trained on")
    test_split: str | None = Field(
        "test",
        description="name of the source's own test split, used where the source has one; null: those rows are not read",
    )
    limit: int | None = Field(None, ge=1, description="read at most this many rows of each split")
    weight: float | None = Field(
        None, gt=0, description="share of the training pairs, relative to the other sources' weights; null: all of them"
    )
    languages: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, description="keep rows in these only, as the column `lang` or `language` calls them; null: all"
    )
    min_score_ratio: float | None = Field(
        None,
        ge=1,
        description="drop pairs whose better answer is not scored this many times the worse; SHP: 2 is usual",
    )
    min_score_difference: float | None = Field(
        None, gt=0, description="drop pairs whose answers' scores are nearer to each other than this"
    )
    max_pairs_per_prompt: int | None = Field(
        None,
        ge=1,
        description="of one prompt keep at most this many pairs, those furthest apart first where a row has several",
    )

    @model_validator(mode="before")
    @classmethod
    def a_text_is_a_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("columns")
    @classmethod
    def columns_are_known_and_mapped_once(cls, columns: dict[str, str]) -> dict[str, str]:
        from posttrain.data.formats import COLUMNS  # which imports this module

        for ours in columns:
            if ours not in COLUMNS:
                raise ValueError(f"no layout has a column {ours!r} ({_nearest(ours, COLUMNS)})")
        theirs = list(columns.values())
        if twice := sorted({name for name in theirs if theirs.count(name) > 1}):
            raise ValueError(f"takes the column {twice[0]!r} for two of ours: a column can be only one of them")
        return columns

    @model_validator(mode="after")
    def there_is_one_limit(self) -> Source:
        if self.limit is not None and _PATH_AND_LIMIT.fullmatch(self.path):
            raise ValueError(f"path {self.path} ends in a number of rows, and limit is {self.limit}: drop one of them")
        return self

    @property
    def location(self) -> str:
        """The path without a number of rows."""
        match = _PATH_AND_LIMIT.fullmatch(self.path)
        return match.group(1) if match else self.path

    @property
    def row_limit(self) -> int | None:
        """The most rows to read of each split."""
        match = _PATH_AND_LIMIT.fullmatch(self.path)
        return int(match.group(2)) if match else self.limit


_PATH_AND_LIMIT = re.compile(r"(.+):([1-9]\d*)")


class DataSection(Section):
    """Where the preference pairs come from and how they are split."""

    sources: list[Source] = Field([Source(path="demo")], min_length=1, description="read one after another")
    test_size: Fraction = Field(
        0.05, description="share of the prompts held out for the verdict; ignored for a source with its own test split"
    )
    validation_size: Fraction = Field(0.05, description="share of the prompts watched during training")
    seed: int = Field(0, ge=0, description="decides which prompts are held out; change it only for a new experiment")
    max_chars: int = Field(
        50_000, ge=1, description="a prompt or a response longer than this many characters is dropped, and counted"
    )
    max_drop_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="stop when a larger share of the rows cannot be used: the source or format is wrong",
    )
    checks: dict[str, Literal["keep", "drop", "fix", "fail"]] = Field(
        {},
        description="what to do about rows that fail a check, e.g. `{near_duplicate: keep}`: the README lists the checks",
    )
    near_threshold: float = Field(
        0.8,
        ge=0.7,
        le=1,
        description="texts are near copies from this share of common word triples (Jaccard); lower: more are found",
    )
    min_agreement: float = Field(
        0.75, ge=0, le=1, description="rows on whose label a smaller share of the annotators agrees are `disputed`"
    )
    max_length_bias: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="how often the longer response may be the chosen one before `length_bias` is found",
    )
    contamination: list[Source] = Field(
        [], description="evaluation sets whose prompts must not be trained on, e.g. `{path: gsm8k, train_split: test}`"
    )

    @field_validator("checks")
    @classmethod
    def each_policy_suits_its_check(cls, checks: dict[str, str]) -> dict[str, str]:
        for check, policy in checks.items():
            if check not in REASONS:
                raise ValueError(f"{check}: unknown check ({_nearest(check, REASONS)})")
            if policy not in (allowed := allowed_policies(check)):
                raise ValueError(f"{check}: {policy} is not possible, only {', '.join(allowed)}")
        return checks

    @field_validator("sources")
    @classmethod
    def sources_hold_pairs(cls, sources: list[Source]) -> list[Source]:
        for source in sources:
            if source.format in INSTRUCTION_FORMATS:
                raise ValueError(f"format {source.format} holds instructions, not pairs: name it under sft.dataset")
        return sources

    @field_validator("sources")
    @classmethod
    def all_sources_have_a_weight_or_none(cls, sources: list[Source]) -> list[Source]:
        without = [source.path for source in sources if source.weight is None]
        if 0 < len(without) < len(sources):
            raise ValueError(f"{', '.join(without)} has no weight, and others have one: give each a weight, or none")
        return sources

    @model_validator(mode="after")
    def something_is_left_to_train_on(self) -> DataSection:
        if self.test_size + self.validation_size >= 0.9:
            raise ValueError("test_size and validation_size together leave under a tenth of the prompts to train on")
        return self


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021)."""

    rank: int = Field(16, ge=1, description="higher: more capacity, more memory")
    alpha: float = Field(32.0, gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="higher: less overfitting, slower learning")
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear", description="which layers get an adapter; never lm_head, which TRL would not train"
    )

    @field_validator("target_modules")
    @classmethod
    def the_head_is_not_adapted(cls, value: str | list[str]) -> str | list[str]:
        if "lm_head" in value:
            raise ValueError("names lm_head, whose adapter TRL 1.16 would never train; leave it out")
        return value


class ModelSection(Section):
    """The base model and how it is adapted, for every stage."""

    base: str = Field("demo", min_length=1, description="`demo`, a folder, or a Hub model id")
    revision: str | None = Field(None, description="Hub only: branch, tag or commit; what it resolved to is recorded")
    method: Literal["full", "lora", "qlora"] = Field(
        "full", description="train all weights, an adapter, or an adapter over a 4-bit base (qlora needs CUDA)"
    )
    lora: LoraSection = Field(LoraSection(), description="used with method lora and qlora")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: bf16 on a GPU, or for a wide model on a CPU with AMX, else fp32; log-probabilities are fp32 in any case",
    )
    chat_template: str | None = Field(
        None,
        description="null: the tokenizer's own, or `plain` if it has none; else plain, chatml, alpaca or a .jinja file",
    )
    layout: Literal["auto", "flat", "padded"] = Field(
        "auto",
        description="of batches; flat: each prompt once and no padding; padded: TRL's own; auto: flat where the model can",
    )
    attention: Literal["auto", "sdpa", "flex", "eager", "flash_attention_2"] = Field(
        "auto",
        description="flat: sdpa or flex (auto: flex on a GPU, else sdpa); padded: any but flex (auto: what transformers has)",
    )
    trust_remote_code: bool = Field(False, description="run Python code that ships with the model; needs a revision")

    @model_validator(mode="after")
    def remote_code_is_pinned(self) -> ModelSection:
        if self.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                "trust_remote_code runs code of the model's authors: pin it in `revision`, by a commit's 40 digits (a branch moves)"
            )
        return self

    @model_validator(mode="after")
    def lora_settings_have_an_adapter(self) -> ModelSection:
        if self.lora != LoraSection() and self.method == "full":
            raise ValueError(
                "lora is set but method is full, which trains no adapter: set method to lora, or drop lora"
            )
        return self


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
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="fsdp: each process keeps its share of weights, gradients and optimizer state: less memory, more traffic",
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
        "auto", description="saves memory, costs about a third more time; auto: only where a step would not fit without"
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


# What a sweep shares between its points must not depend on the point.
NOT_SWEPT = {
    "max_length": "changes the tokens that the shared reference is scored on: run one sweep for each value",
    "max_prompt_length": "changes the tokens that the shared reference is scored on: run one sweep for each value",
    "sft_checkpoint": "is where all points start: set dpo.sft_checkpoint, and run one sweep for each start",
}


class _Grid(Section):
    @model_validator(mode="before")
    @classmethod
    def all_points_share_their_reference(cls, values: Any) -> Any:
        if isinstance(values, dict) and (bad := NOT_SWEPT.keys() & values.keys()):
            raise ValueError(f"{min(bad)} {NOT_SWEPT[min(bad)]}")
        return values

    @field_validator("*")
    @classmethod
    def no_value_stands_twice(cls, values: Any) -> Any:
        for i, value in enumerate(values or ()):
            if value in values[:i]:
                raise ValueError(f"{value!r} stands twice: each value is one point of the grid")
        return values

    @model_validator(mode="after")
    def something_is_swept(self) -> _Grid:
        if not self.model_dump():
            raise ValueError(
                "is empty: name at least one setting of dpo with its values, e.g. `beta: [0.05, 0.1, 0.5]`"
            )
        return self

    @model_serializer(mode="wrap")
    def only_what_is_swept(self, handler: Any) -> dict[str, Any]:
        return {name: values for name, values in handler(self).items() if values is not None}


if TYPE_CHECKING:
    Grid = _Grid
else:
    # Every setting of dpo as a list of values, each with the type and bounds that it has there.
    Grid = create_model(
        "Grid",
        __base__=_Grid,
        **{
            name: (
                Annotated[list[Annotated[field.annotation, *field.metadata, name]], Field(min_length=1)] | None,
                None,
            )
            for name, field in DpoSection.model_fields.items()
            if name not in NOT_SWEPT
        },
    )


class SweepSection(Section):
    """Several DPO trainings from one SFT checkpoint, and which of them is kept."""

    grid: Annotated[Grid, WithJsonSchema({"type": "object"})] = Field(
        description="settings of `dpo` and their values, e.g. `{beta: [0.05, 0.1], learning_rate: [1.0e-6, 5.0e-6]}`: "
        "every combination is trained"
    )
    choose_by: Literal["likelihood_accuracy", "implicit_accuracy"] = Field(
        "likelihood_accuracy",
        description="of the validation pairs; likelihood_accuracy is what the gate goes by on the test pairs",
    )


class GenerationsSection(Section):
    """What SFT and DPO answer to the same test prompts."""

    n: int = Field(
        64, ge=0, description="test prompts that are answered; higher: narrower intervals, more time; 0: none"
    )
    max_new_tokens: int = Field(128, ge=1, description="an answer that has not stopped by then is cut, and counted")
    temperature: float = Field(0.0, ge=0, description="0: the likeliest token each time; higher: answers vary more")


class JudgeSection(Section):
    """Who says which of two answers is better: a function, an OpenAI-compatible endpoint, or nobody."""

    function: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="`module:function` that takes prompt, first and second and says `first`, `second` or `tie`",
    )
    base_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="of an OpenAI-compatible endpoint, up to `/v1`; prompts and answers are sent there",
    )
    model: str | None = Field(None, min_length=1, description="name of the model behind base_url")
    api_key_env: str | None = Field(
        None, min_length=1, description="environment variable that holds the key; null: none is sent"
    )
    criteria: str = Field(
        "the helpfulness, relevance, accuracy, depth and harmlessness of the responses",
        description="what the judge is to look at",
    )
    temperature: float | None = Field(0.0, ge=0, description="of the judge; null: not sent, for models that refuse it")
    concurrency: int = Field(
        4, ge=1, le=64, description="questions asked at once; higher: faster, until the endpoint refuses"
    )
    timeout_s: float = Field(60.0, gt=0, description="for one answer of the judge")
    n_retries: int = Field(
        5, ge=0, le=20, description="where the endpoint is busy or cannot be reached, ever longer apart"
    )

    @model_validator(mode="after")
    def one_judge_is_named_in_full(self) -> JudgeSection:
        if self.function and self.base_url:
            raise ValueError("function and base_url are two judges: name one")
        if bool(self.base_url) != bool(self.model):
            raise ValueError("an endpoint needs both base_url and model: name both, or neither")
        return self

    @model_validator(mode="after")
    def no_password_in_the_address(self) -> JudgeSection:
        if "@" in urlsplit(self.base_url or "").netloc:
            raise ValueError(
                "base_url holds a user or a password, and settings are shown in MLflow and reports: put a key into an environment "
                "variable, and name that in api_key_env"
            )
        return self


class EvaluationSection(Section):
    """How the test pairs are scored."""

    tokens_per_batch: int = Field(8192, ge=1, description="padded tokens scored at once; higher: faster, more memory")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
    n_bootstrap: int = Field(2000, ge=100, description="resamples for the interval of a mean")
    seed: int = Field(0, ge=0, description="of the resampling, and of the places where KL is measured")
    n_kl_pairs: int = Field(
        128,
        ge=0,
        description="test pairs on which KL to the reference is measured; 0: not at all, and SFT is not loaded",
    )
    n_wrong_pairs: int = Field(20, ge=0, description="how many of the surest wrong pairs are shown with their texts")
    sets: list[Source] = Field(
        [],
        description="further pairs to judge by, such as LLMBar or PandaLM, each as `data.sources[]`; all rows of any split",
    )
    generations: GenerationsSection = GenerationsSection()
    judge: JudgeSection = JudgeSection()


class GateSection(Section):
    """What a model must show to be promoted to production."""

    min_gain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="the whole interval of the gain in accuracy over the champion must lie above; a first model is held "
        "against SFT, or SFT against the base",
    )
    max_p_value: float = Field(0.05, gt=0, lt=1, description="of McNemar's exact test (two-sided); lower: stricter")
    max_slice_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description="no slice may be surely worse by more, again by the interval; 1: slices do not matter",
    )
    min_slice_pairs: int = Field(20, ge=1, description="smaller slices are not looked at")
    block_severity: Literal["warning", "error", "never"] = Field(
        "error", description="a finding of this severity, or a graver one, keeps a model from production"
    )


class CheckpointsSection(Section):
    """What an interrupted training goes on from; lies in the artifact store until the training is done."""

    interval_s: float = Field(
        600.0, ge=0, description="seconds between two training checkpoints; lower: less is lost, more is written"
    )


class TrackingSection(Section):
    """Where the curves go: the active stack's MLflow tracker, else MLFLOW_TRACKING_URI, else a local store."""

    experiment: str = Field("dpo_pipeline", min_length=1, description="MLflow experiment")


class RunConfig(Section):
    """Everything a run can be told."""

    name: str = Field("dpo", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the model in the registry")
    finetuning_type: Literal["sft", "dpo", "both"] = Field(
        "both", description="SFT alone, DPO alone from dpo.sft_checkpoint, or SFT and then DPO"
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="of initial weights, data order and dropout")
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    sft: SftSection = SftSection()
    dpo: DpoSection = DpoSection()
    evaluation: EvaluationSection = EvaluationSection()
    gate: GateSection = GateSection()
    checkpoints: CheckpointsSection = CheckpointsSection()
    tracking: TrackingSection = TrackingSection()
    sweep: SweepSection | None = Field(None, description="for sweep_pipeline: settings of dpo to be tried and compared")

    def sweep_points(self) -> list[tuple[dict[str, Any], DpoSection]]:
        """Every combination of the grid's values, with the whole section that it makes of `dpo`; empty without a sweep.

        Raises:
            ValidationError: the values of a point exclude each other.
        """
        if self.sweep is None:
            return []
        grid: dict[str, list[Any]] = self.sweep.grid.model_dump()
        points = (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))
        return [(point, DpoSection.model_validate({**self.dpo.model_dump(), **point})) for point in points]

    @model_validator(mode="after")
    def every_point_of_the_sweep_can_be_trained(self) -> RunConfig:
        if self.sweep is None:
            return self
        if self.finetuning_type == "sft":
            raise ValueError("sweep is set but finetuning_type is sft, which trains no DPO: set it to both, or to dpo")
        if self.data.validation_size == 0:
            raise ValueError("sweep chooses on validation pairs, of which data.validation_size 0 leaves none: raise it")
        try:
            self.sweep_points()
        except ValidationError as error:
            point = {name: error.errors()[0]["input"][name] for name in self.sweep.grid.model_dump()}
            raise ValueError(f"sweep.grid at {point_label(point)}: {_explain(error.errors()[0])[1]}") from error
        return self

    @model_validator(mode="after")
    def dpo_alone_has_a_start(self) -> RunConfig:
        if self.finetuning_type == "dpo" and not self.dpo.sft_checkpoint:
            raise ValueError("finetuning_type dpo needs dpo.sft_checkpoint: the SFT checkpoint that DPO starts from")
        if self.finetuning_type != "dpo" and self.dpo.sft_checkpoint:
            raise ValueError(
                f"dpo.sft_checkpoint is set but finetuning_type is {self.finetuning_type}, which trains its own: "
                "set finetuning_type to dpo, or drop dpo.sft_checkpoint"
            )
        return self

    @model_validator(mode="after")
    def sft_settings_are_used(self) -> RunConfig:
        if self.finetuning_type == "dpo" and self.sft != SftSection():
            raise ValueError("sft is set but finetuning_type is dpo, which runs no SFT: drop the section, or say both")
        return self

    @model_validator(mode="after")
    def a_base_in_4_bit_is_not_sharded(self) -> RunConfig:
        for name, section in (("sft", self.sft), ("dpo", self.dpo)):
            if section.sharding != "none" and self.model.method == "qlora":
                raise ValueError(
                    f"{name}.sharding {section.sharding} leaves the 4-bit base of model.method qlora whole in every process: set "
                    "model.method to lora, or sharding to none"
                )
        return self

    @model_validator(mode="after")
    def the_demo_is_whole(self) -> RunConfig:
        if self.model.base == "demo" and any(source.location != "demo" for source in self.data.sources):
            raise ValueError(
                "model.base is demo, a tiny model that only knows the demo's words: name a model for your own data"
            )
        return self


def point_label(values: dict[str, Any]) -> str:
    """A point of a sweep in words: `beta=0.1, learning_rate=5e-06`."""
    return ", ".join(f"{name}={value_label(value)}" for name, value in values.items())


def value_label(value: Any) -> str:
    """A value in words: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


# The top level of a run's YAML file is ZenML's; a test compares this list with ZenML's own model.
TOP_LEVEL_KEYS = frozenset(
    "run_name enable_cache enable_artifact_metadata enable_artifact_visualization enable_step_logs enable_pipeline_logs "
    "enable_heartbeat schedule build steps settings environment secrets tags extra model parameters retry "
    "init_hook_source init_hook_kwargs cleanup_hook_source failure_hook_source success_hook_source start_hook_source "
    "end_hook_source pause_hook_source resume_hook_source substitutions cache_policy execution_mode".split()
)


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML and refuses a key that stands twice, of which YAML would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path) -> RunConfig:
    """The checked config of a YAML file.

    Args:
        path: a file whose `parameters.config` holds the run's settings; the rest is ZenML's.

    Raises:
        UserError: one line a mistake: file, key, value and remedy.
    """
    path = Path(path)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: holds no settings: they go under `parameters: config:`")
    for key in document:
        if key not in TOP_LEVEL_KEYS:
            hint = "run settings go under `parameters: config:`" if key in RunConfig.model_fields else None
            raise UserError(f"{path}: {key}: unknown key ({hint or _nearest(str(key), TOP_LEVEL_KEYS)})")
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict) or set(parameters) - {"config"}:
        wrong = ", ".join(map(str, set(parameters) - {"config"})) if isinstance(parameters, dict) else repr(parameters)
        raise UserError(f"{path}: parameters.{wrong}: unknown key (the one parameter is `config`)")
    return check_config(parameters.get("config") or {}, path)


def check_config(values: Any, path: str | Path = "config") -> RunConfig:
    """The checked config of plain values, as read from YAML.

    Raises:
        UserError: one line a mistake, each beginning with `path`.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines: dict[str, list[str]] = {}
        for item in error.errors():
            key, message = _explain(item)
            lines.setdefault(key, []).append(message)
        # A value that fits none of several types has an error for each: they are one mistake.
        raise UserError("\n".join(f"{path}: {key}: {_merge(messages)}" for key, messages in lines.items())) from error


def _merge(messages: list[str]) -> str:
    first, *others = dict.fromkeys(messages)
    return ", or ".join([first, *(other.split(": must be ")[-1] for other in others)])


def _explain(item: Any) -> tuple[str, str]:
    """The key path of a pydantic error, and what is wrong with its value and how to mend it."""
    location = [part for part in item["loc"] if not _is_union_branch(part)]
    key = ".".join(str(part) for part in location) or "config"
    if item["type"] == "extra_forbidden":
        fields = _fields_at(location[:-1])
        return key, f"unknown key ({_nearest(str(location[-1]), fields)})"
    if item["type"] == "missing":
        return key, "missing: give it a value"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return key, message
    if item["input"] is None:
        return key, "has no value: give it one, or drop the key for its default"
    rule = message.replace("Input should be", "must be").replace("List should", "the list should")
    return key, f"{item['input']!r} is not allowed: {rule}"


def _is_union_branch(part: Any) -> bool:
    """Whether pydantic put the name of a type, not of a key, into an error's location."""
    return isinstance(part, str) and (
        part.startswith(("constrained-", "list[", "literal[", "function-")) or part in ("int", "float", "str")
    )


def _fields_at(location: list[Any]) -> set[str]:
    """The keys that may stand at a place in the config."""
    model: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return set(model.model_fields)


def _nearest(key: str, known: Any) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
