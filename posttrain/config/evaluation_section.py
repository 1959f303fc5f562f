"""How the models are judged, and what one must show to be promoted."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from posttrain.config.data_section import Source
from posttrain.config.section import Section


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
