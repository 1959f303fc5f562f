"""Settings of the evaluation."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from posttrain.config.sections.benchmark_section import BenchmarkSection
from posttrain.config.sections.data_section import Source
from posttrain.config.sections.section import Section


class GenerationsSection(Section):
    """Generation of answers to test prompts, the same prompts for every model."""

    n: int = Field(
        64, ge=0, description="number of test prompts to answer; more give narrower intervals and take longer; 0: none"
    )
    max_new_tokens: int = Field(
        128, ge=1, description="maximum number of tokens per answer; longer answers are cut off and counted"
    )
    temperature: float = Field(0.0, ge=0, description="sampling temperature; 0: greedy decoding")
    top_p: float = Field(
        1.0, gt=0, le=1, description="sample from the smallest set of tokens with this probability; 1: from all"
    )


class EndpointSection(Section):
    """A model at an OpenAI-compatible endpoint."""

    base_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="URL of an OpenAI-compatible endpoint, up to `/v1`; the texts of the questions are sent there",
    )
    model: str | None = Field(None, min_length=1, description="name of the model at base_url")
    api_key_env: str | None = Field(
        None, min_length=1, description="name of the environment variable with the API key; null: send no key"
    )
    temperature: float | None = Field(
        0.0, ge=0, description="sampling temperature; null: not sent, for models that do not accept it"
    )
    concurrency: int = Field(
        4, ge=1, le=64, description="number of parallel requests; higher is faster, up to the endpoint's rate limit"
    )
    timeout_s: float = Field(60.0, gt=0, description="timeout of one request, in seconds")
    deadline_s: float = Field(
        7200.0,
        gt=0,
        description="seconds for all questions to an endpoint; those that are not answered by then count as failed",
    )
    n_retries: int = Field(
        5, ge=0, le=20, description="retries, with exponential backoff, if the endpoint is busy or unreachable"
    )

    @model_validator(mode="after")
    def validate_endpoint(self) -> EndpointSection:
        if bool(self.base_url) != bool(self.model):
            raise ValueError("an endpoint needs both base_url and model: set both or neither")
        return self

    @model_validator(mode="after")
    def validate_base_url(self) -> EndpointSection:
        address = urlsplit(self.base_url or "")
        if address.query or address.fragment:
            raise ValueError(
                "base_url has a query, in which keys are often sent, and settings are shown in MLflow and reports: put the key "
                "into an environment variable and set api_key_env to its name"
            )
        return self


class JudgeSection(EndpointSection):
    """The judge of pairs of answers: a function, an OpenAI-compatible endpoint or a verifier. Without one, no judge is used."""

    verifier: str | None = Field(
        None,
        min_length=1,
        description="verifier of verifier_pipeline as the judge: NAME (its newest version) or NAME:VERSION, such as "
        "`demo-verifier:production`; it must not have been trained on the test prompts",
    )
    function: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="judge as `module:function`; called with prompt, first and second, returns `first`, `second` or `tie`",
    )
    criteria: str = Field(
        "the helpfulness, relevance, accuracy, depth and harmlessness of the responses",
        description="criteria by which the judge compares answers",
    )

    @model_validator(mode="after")
    def validate_judge(self) -> JudgeSection:
        if len(given := [name for name in ("function", "base_url", "verifier") if getattr(self, name)]) > 1:
            raise ValueError(f"{' and '.join(given)} are both set, but only one judge is used: remove one")
        return self


class EvaluationSection(Section):
    """Scoring of the test pairs and generation of answers."""

    tokens_per_batch: int = Field(
        8192,
        ge=1,
        description="maximum number of tokens per scoring batch, padding included; higher is faster and takes more memory; on a "
        "GPU answers are generated in batches that fill its memory instead",
    )
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="number of processes that score and answer, also for the reference; each has its own copy of the model; auto: "
        "one per GPU, or one on a CPU",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence level of all intervals")
    n_bootstrap: int = Field(2000, ge=100, description="number of bootstrap resamples per interval")
    seed: int = Field(0, ge=0, description="seed of the bootstrap and of the sample of pairs for KL")
    n_kl_pairs: int = Field(
        128,
        ge=0,
        description="number of test pairs used to measure the KL divergence from the reference; 0: not measured, and SFT is not "
        "loaded for it",
    )
    n_wrong_pairs: int = Field(
        20, ge=0, description="number of wrongly ranked pairs to show with their texts, the most confident errors first"
    )
    sets: list[Source] = Field(
        [],
        description="additional evaluation sets, such as LLMBar or PandaLM, each as in `data.sources[]`; rows of all splits are "
        "used",
    )
    benchmarks: list[BenchmarkSection] = Field(
        [],
        description="benchmarks of lm-evaluation-harness that base, SFT, DPO and the champion take, such as `[{task: gsm8k, limit: "
        "200}]`; needs the extra `benchmarks`",
    )
    generations: GenerationsSection = GenerationsSection()
    judge: JudgeSection = JudgeSection()

    @field_validator("benchmarks")
    @classmethod
    def validate_benchmarks(cls, value: list[BenchmarkSection]) -> list[BenchmarkSection]:
        names = [benchmark.name for benchmark in value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two benchmarks have the name {twice!r}: remove one, or rename a YAML file")
        return value
