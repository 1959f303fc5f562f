"""Settings of the promotion gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.config.sections.section import Section


class GateSection(Section):
    """Conditions for promoting a model to production."""

    decide_by: Literal["ranking", "answers"] = Field(
        "ranking",
        description="what a new model must be better in; ranking: accuracy on the test pairs; answers: win rate of the answers to "
        "test prompts, by the judge or, without one, by the demo's true reward, while the ranking accuracy may fall by "
        "max_slice_loss at most",
    )
    min_gain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="lower bound of the accuracy gain's interval, at the level of the look, must exceed this; the gain is over "
        "the champion, or, if there is none, of DPO over SFT or of SFT over the base",
    )
    max_p_value: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="probability that any of the planned looks promotes a model that is no better than the champion, and maximum "
        "p-value of a single look (exact sign-flip test by prompt, two-sided); lower is stricter",
    )
    planned_looks: int = Field(
        20,
        ge=1,
        le=100_000,
        description="number of models that will be judged on the same test prompts; more make each decision stricter; after them "
        "the gate refuses until there are fresh test prompts; for a nightly schedule: 365",
    )
    min_prompts: int = Field(
        20, ge=1, description="minimum number of test prompts; with fewer the verdict is that there are too few to tell"
    )
    max_slice_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description="maximum loss of accuracy in a slice; refused if a slice surely loses more, after Holm's correction for their "
        "number; 1: ignore slices",
    )
    min_slice_pairs: int = Field(20, ge=1, description="minimum number of pairs in a slice for max_slice_loss to apply")
    block_severity: Literal["warning", "error", "never"] = Field(
        "error", description="minimum severity of a finding that blocks promotion"
    )
    max_set_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description="maximum loss of accuracy on a set of evaluation.sets; refused if the interval of a set with at least "
        "min_slice_pairs pairs lies entirely below minus this, also after Holm's correction for their number; 1: ignore sets",
    )
    max_benchmark_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description="maximum loss of score on a benchmark of evaluation.benchmarks, against the opponent; refused if the interval "
        "of a benchmark lies entirely below minus this, also after Holm's correction for their number; 1: ignore benchmarks",
    )
    max_forgetting_nats: float = Field(
        1.0,
        gt=0,
        description="maximum rise of the loss on held-out SFT data, in nats per token, against SFT and against the champion; "
        "refused if the interval of the rise lies entirely above this",
    )
    min_win_rate: float = Field(
        0.5,
        ge=0,
        le=1,
        description="upper bound of the win rate of the answers against the opponent's must not be below this, by the judge or by "
        "the demo's true reward; the opponent is the champion, or, if there is none, SFT; 0: ignore",
    )
    max_stop_loss: float = Field(
        0.1,
        ge=0,
        le=1,
        description="maximum fall of the share of answers that end with a stop token, against the opponent; refused if the "
        "interval of the fall lies entirely above this; 1: ignore",
    )
    max_repetition_gain: float = Field(
        0.1,
        ge=0,
        le=1,
        description="maximum rise of the mean share of repeated 4-grams in an answer, against the opponent; refused if the "
        "interval of the rise lies entirely above this; 1: ignore",
    )
    max_repetition: float = Field(
        0.5,
        ge=0,
        le=1,
        description="maximum mean share of repeated 4-grams in an answer, whatever the opponent's; refused if the interval lies "
        "entirely above this; 1: ignore",
    )
    max_empty_gain: float = Field(
        0.05,
        ge=0,
        le=1,
        description="maximum rise of the share of empty answers, against the opponent; refused if the interval of the rise lies "
        "entirely above this; 1: ignore",
    )
    max_length_ratio: float = Field(
        3.0,
        ge=1,
        description="maximum length of the answers in characters as a multiple of the opponent's, and the reverse; refused if the "
        "interval lies entirely above this or below 1 divided by this",
    )
    min_answers: int = Field(
        20, ge=1, description="minimum number of answered prompts for the conditions on answers to apply"
    )
