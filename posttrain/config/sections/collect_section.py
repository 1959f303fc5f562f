"""Settings of collect_pipeline: answers of trained models, judged and paired."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from posttrain.config.sections.data_section import Source
from posttrain.config.sections.documents_section import DocumentsSection
from posttrain.config.sections.evaluation_section import JudgeSection
from posttrain.config.sections.section import Section


class CollectJudgeSection(JudgeSection):
    """The judge of the answers: it scores each answer, or compares all pairs of answers to a prompt in both orders."""

    score_function: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="judge that scores, as `module:function`; called with prompt and answer, returns a number, higher is better",
    )

    @property
    def name(self) -> str:
        """What decides, for display: a function, or the model and its URL."""
        return self.score_function or self.function or f"{self.model} at {self.base_url}"

    @model_validator(mode="after")
    def validate_one_judge(self) -> CollectJudgeSection:
        if self.verifier:
            raise ValueError(
                "verifier is set, but collect_pipeline judges with a function or an endpoint: set score_function to a function "
                "that scores with the verifier, or remove it"
            )
        if self.score_function and (self.function or self.base_url):
            raise ValueError("score_function is set with another judge, but only one is used: remove one")
        return self


class PairRuleSection(Section):
    """The rule that makes pairs of judged answers.

    The pair with the largest margin comes first, which is the best answer against the worst. Each answer is in at most one pair.
    """

    min_margin: float = Field(
        0.0,
        ge=0,
        description="minimum difference between the scores of the two answers; equal scores never make a pair. A judge that "
        "compares gives scores from 0 to 1: the share of comparisons won",
    )
    max_per_prompt: int = Field(1, ge=1, description="maximum number of pairs per prompt")
    max_length_ratio: float | None = Field(
        None,
        ge=1,
        description="maximum ratio of the longer answer's characters to the shorter one's, against pairs that differ in length "
        "alone; null: any",
    )


class CollectSection(Section):
    """Collection of new preference pairs from answers of trained models. Prompts held out by `data` are never used."""

    models: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="models that answer, e.g. `demo:production`, `demo:3`, `dpo_checkpoint:2` or a folder; empty: the version of "
        "`name` in production",
    )
    prompts: list[Source] = Field(
        [],
        description="sources of the prompts, each as in `data.sources[]`, or with a single column `prompt`; empty: the training "
        "prompts of `data`",
    )
    n_prompts: int = Field(
        500,
        ge=1,
        description="maximum number of prompts, chosen by a hash of the prompt and the seed; of documents, of passages",
    )
    n_answers: int = Field(4, ge=2, description="number of answers of each model to each prompt")
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the answers")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the smallest set of tokens with this probability")
    max_new_tokens: int = Field(
        128, ge=1, description="maximum number of tokens per answer; longer answers are counted and not used"
    )
    seed: int = Field(0, ge=0, description="seed of the choice of prompts and of the answers")
    tokens_per_batch: int = Field(
        8192, ge=1, description="maximum number of tokens per batch of answers, padding included"
    )
    max_failed_share: float = Field(
        0.2, ge=0, le=1, description="maximum share of prompts whose answers cannot be judged; above it the run stops"
    )
    judge: CollectJudgeSection = CollectJudgeSection()
    pairs: PairRuleSection = PairRuleSection()
    documents: DocumentsSection | None = Field(
        None, description="make pairs from documents instead; then models, prompts, judge and pairs are not used"
    )

    @model_validator(mode="after")
    def validate_judge_is_set(self) -> CollectSection:
        judge = self.judge
        if self.documents is None and not (judge.score_function or judge.function or judge.base_url):
            raise ValueError(
                "judge is missing: set judge.score_function (`module:function` that scores an answer), judge.function (compares "
                "two) or judge.base_url with judge.model"
            )
        return self
