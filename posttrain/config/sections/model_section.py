"""Settings of the base model and its adapter."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.sections.section import Section


class LoraSection(Section):
    """Low-rank adaptation (Hu et al. 2021)."""

    rank: int = Field(16, ge=1, description="rank of the adapter; higher has more capacity and takes more memory")
    alpha: float = Field(32.0, gt=0, description="scaling: the adapter's output is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability on the adapter's input")
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear",
        description="names of the layers that get an adapter; lm_head is not allowed, because TRL would not train it",
    )

    @field_validator("target_modules")
    @classmethod
    def validate_target_modules(cls, value: str | list[str]) -> str | list[str]:
        if "lm_head" in value:
            raise ValueError("contains lm_head, whose adapter TRL 1.16 does not train: remove it")
        return value


class ModelSection(Section):
    """The base model and how it is adapted, the same for all stages."""

    base: str = Field("demo", min_length=1, description="base model: `demo`, a folder or a Hub model id")
    revision: str | None = Field(None, description="Hub only: branch, tag or commit; the resolved commit is recorded")
    method: Literal["full", "lora", "qlora"] = Field(
        "full",
        description="train all weights (full), a LoRA adapter (lora), or a LoRA adapter on a 4-bit base (qlora, needs CUDA)",
    )
    lora: LoraSection = Field(LoraSection(), description="adapter settings, for method lora and qlora")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="precision of matrix products; auto: bf16 on a GPU (fp16 where it lacks bf16) and for large models on a CPU "
        "with AMX, else fp32; log-probabilities are always fp32; fp16 scales the loss and needs a GPU",
    )
    chat_template: str | None = Field(
        None,
        description="chat template: plain, chatml, alpaca, a .jinja file, or one of the tokenizer's named ones; null: the "
        "tokenizer's own, or plain if it has none",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {},
        description="values of the chat template's variables, such as `{enable_thinking: false}`; they apply in every stage and "
        "are saved in the template of the checkpoint and the export",
    )
    template_date: date = Field(
        date(2024, 7, 26),
        description="date that a chat template with a clock prints, in every stage and in the export, so that all "
        "see the same tokens",
    )
    layout: Literal["auto", "flat", "padded"] = Field(
        "auto",
        description="batch layout; flat: each prompt once, without padding; padded: TRL's; auto: flat if the model supports it",
    )
    attention: Literal["auto", "sdpa", "flex", "eager", "flash_attention_2"] = Field(
        "auto",
        description="attention kernel; layout flat: sdpa or flex (auto: flex on a GPU, else sdpa); padded: any but flex (auto: "
        "transformers' default)",
    )
    router_aux_loss_coef: float | None = Field(
        None,
        ge=0,
        le=1,
        description="mixture of experts: weight of the load-balancing loss; null: the model's own in SFT, 0 in DPO, "
        "which then starts at ln 2",
    )
    trust_remote_code: bool = Field(
        False, description="run Python code from the model repository; needs revision to be a commit"
    )

    def without_paths(self) -> dict[str, Any]:
        """Return what these settings mean for any base model: without its place, and with a template file's name only."""
        template = self.chat_template and Path(self.chat_template).name
        return {**self.model_dump(mode="json", exclude={"base", "revision"}), "chat_template": template}

    @property
    def for_tokens(self) -> ModelSection:
        """These settings reduced to those that decide the tokens of a text: base and chat template."""
        kept = {"base", "revision", "chat_template", "chat_template_kwargs", "template_date", "trust_remote_code"}
        return ModelSection(**self.model_dump(include=kept))

    @model_validator(mode="after")
    def validate_remote_code(self) -> ModelSection:
        if self.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                "trust_remote_code runs code of the model's authors, and a branch can change: set `revision` to a commit of 40 "
                "hex digits"
            )
        return self

    @model_validator(mode="after")
    def validate_lora(self) -> ModelSection:
        if self.lora != LoraSection() and self.method == "full":
            raise ValueError(
                "lora is set but method is full, which trains no adapter: set method to lora, or remove lora"
            )
        return self
