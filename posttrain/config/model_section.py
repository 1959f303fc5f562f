"""What is trained."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.section import Section


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

    @property
    def for_tokens(self) -> ModelSection:
        """These settings reduced to those that decide the tokens of a text: base and chat template."""
        kept = {"base", "revision", "chat_template", "trust_remote_code"}
        return ModelSection(**self.model_dump(include=kept))

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
