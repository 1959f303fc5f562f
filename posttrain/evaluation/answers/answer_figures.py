"""Figures on the answers of one model, and the comparison of two models' answers to the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from posttrain.config import EvaluationSection
from posttrain.evaluation.answers.judge import Judgement, WinRate, win_rate
from posttrain.evaluation.clustered.gains import paired_gain
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.intervals import Estimate, Result, bootstrap_mean, bootstrap_ratio, wilson


class Response(Result):
    """Answer of a model."""

    text: str
    """Without the stop token."""
    n_tokens: int
    """Number of generated tokens, without the stop token."""
    stopped: bool
    """Whether a stop token was generated within `max_new_tokens`."""
    repetition: float
    """Share of its token 4-grams that occurred earlier in it; 0 if it has fewer than 4 tokens."""
    true_reward: float | None
    """By the hidden reward (demo only)."""


class StageGenerations(Result):
    """Figures on all answers of one model."""

    stop_rate: Estimate
    """Share that ended with a stop token."""
    n_tokens: Estimate
    """Mean."""
    repetition: Estimate
    """Mean share of repeated 4-grams (rep-4 of Welleck et al. 2020)."""
    distinct_2: float
    """Distinct token bigrams over all token bigrams of all answers (Li et al. 2016). Low if the answers are alike."""
    true_reward: Estimate | None
    """Mean (demo only)."""


class AnswerComparison(Result):
    """Answers of a newer model and of an older one to the same prompts, compared prompt by prompt."""

    stop_rate: Estimate
    """Difference in the share of answers that end with a stop token."""
    repetition: Estimate
    """Difference in the mean share of repeated 4-grams."""
    empty: Estimate
    """Difference in the share of empty answers."""
    length_ratio: Estimate
    """Mean length in characters over that of the older model. One character is added to each answer, as it may be empty."""
    by_true_reward: WinRate | None
    """Win rate by the hidden reward (demo only)."""
    by_judge: Judgement | None
    """Win rate by a judge, if one is set."""

    @property
    def win_rates(self) -> dict[str, WinRate]:
        """Win rates by who decided: `the judge NAME`, `the true reward`."""
        judged = {f"the judge {self.by_judge.judge}": self.by_judge.win_rate} if self.by_judge else {}
        return {by: rate for by, rate in (judged | {"the true reward": self.by_true_reward}).items() if rate}


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Return the share of a text's n-grams that occurred earlier in it; 0 if it has none.

    Source: Welleck et al. 2020, rep-n: 1 - distinct n-grams / n-grams.
    """
    grams = list(_ngrams(ids, n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _ngrams(ids: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))


def summarise_answers(
    answers: Sequence[Response], tokens: Sequence[list[int]], section: EvaluationSection
) -> StageGenerations:
    """Return the figures on all answers of a model.

    Args:
        tokens: token ids of the answers, without stop tokens.
    """
    bigrams = [gram for ids in tokens for gram in _ngrams(ids, 2)]
    rewards = [answer.true_reward for answer in answers if answer.true_reward is not None]

    def mean(values: Sequence[float]) -> Estimate:
        return bootstrap_mean(np.array(values), section)

    return StageGenerations(
        stop_rate=wilson(sum(answer.stopped for answer in answers), len(answers), section.confidence),
        n_tokens=mean([answer.n_tokens for answer in answers]),
        repetition=mean([answer.repetition for answer in answers]),
        distinct_2=len(set(bigrams)) / len(bigrams) if bigrams else 0.0,
        true_reward=mean(rewards) if rewards else None,
    )


def compare_answers(
    newer: Sequence[Response], older: Sequence[Response], judgement: Judgement | None, section: EvaluationSection
) -> AnswerComparison:
    """Return the comparison of two models' answers to the same prompts, in the same order; there is at least one."""

    def share_difference(newer: Sequence[bool], older: Sequence[bool]) -> Estimate:
        values = np.array(newer, dtype=float) - np.array(older, dtype=float)
        gain = paired_gain(values, Clusters.single(len(values)), section.confidence)
        return Estimate(value=gain.value, low=gain.low, high=gain.high)

    lengths, older_lengths = (np.array([len(answer.text) + 1.0 for answer in answers]) for answers in (newer, older))
    repetition = [a.repetition - b.repetition for a, b in zip(newer, older, strict=True)]
    return AnswerComparison(
        stop_rate=share_difference([a.stopped for a in newer], [a.stopped for a in older]),
        repetition=bootstrap_mean(np.array(repetition), section),
        empty=share_difference([not a.text for a in newer], [not a.text for a in older]),
        length_ratio=bootstrap_ratio(lengths, older_lengths, section),
        by_true_reward=_by_true_reward(newer, older, section),
        by_judge=judgement,
    )


def _by_true_reward(newer: Sequence[Response], older: Sequence[Response], section: EvaluationSection) -> WinRate | None:
    scores = []
    for one, other in zip(newer, older, strict=True):
        if one.true_reward is not None and other.true_reward is not None:
            # A sum in another order differs in its last digits.
            scores.append((float(np.sign(round(one.true_reward, 6) - round(other.true_reward, 6))) + 1) / 2)
    return win_rate(scores, section.confidence) if scores else None


def figures_by_chart(comparisons: Mapping[str, AnswerComparison]) -> dict[str, float]:
    """Return the win rates as logged to MLflow: `win/true_reward` of DPO over SFT, `win_champion/judge` over the champion."""
    flat = {}
    for name, comparison in comparisons.items():
        judged = comparison.by_judge.win_rate if comparison.by_judge else None
        for by, rate in (("true_reward", comparison.by_true_reward), ("judge", judged)):
            if rate:
                flat[f"win{'_champion' if name.endswith('_champion') else ''}/{by}"] = rate.share.value
    return flat
