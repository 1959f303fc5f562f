"""What a verifier gains by choosing among n answers to a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from posttrain.config import EvaluationSection
from posttrain.evaluation.intervals import Estimate, Result, bootstrap_mean

LARGEST_N = 64


class AnsweredQuestion(NamedTuple):
    """Answers to one question."""

    scores: np.ndarray
    """By the verifier."""
    qualities: np.ndarray
    """What counts: 1 for a right answer and 0 for a wrong one, or a true reward."""


class BestOf(Result):
    """Choosing among `n` answers, over all questions that have as many."""

    n: int
    n_questions: int
    quality: Estimate
    """Mean quality of the answers with the highest scores."""
    gain: Estimate
    """The same minus that of an answer drawn at random, question by question."""
    ceiling: Estimate
    """Mean quality of the best answers, which a perfect verifier would choose."""


def best_of_n(questions: Sequence[AnsweredQuestion], section: EvaluationSection) -> list[BestOf]:
    """Return the expected quality of the answer chosen among 1, 2, 4, … answers, as far as two questions have so many.

    It is the exact mean over all choices of n of a question's answers, so no answer is drawn. Questions are the unit of the
    intervals.

    Source: Nakano et al. 2021, appendix I, for the unbiased estimate from more than n answers.
    """
    found = []
    for n in (2**i for i in range(LARGEST_N.bit_length())):
        asked = [question for question in questions if len(question.scores) >= n]
        if len(asked) < 2:
            break
        chosen = np.array([_expected_best(question.scores, question.qualities, n) for question in asked])
        perfect = np.array([_expected_best(question.qualities, question.qualities, n) for question in asked])
        random = np.array([question.qualities.mean() for question in asked])
        found.append(
            BestOf(
                n=n,
                n_questions=len(asked),
                quality=bootstrap_mean(chosen, section),
                gain=bootstrap_mean(np.round(chosen - random, 12), section),  # exactly 0 for n = 1
                ceiling=bootstrap_mean(perfect, section),
            )
        )
    return found


def _expected_best(scores: np.ndarray, qualities: np.ndarray, n: int) -> float:
    """Return the mean quality of the answer with the highest score among n of a question's answers; equal scores draw lots."""
    total = len(scores)
    distinct, group = np.unique(scores, return_inverse=True)
    means = np.bincount(group, qualities) / np.bincount(group)
    last = np.cumsum(np.bincount(group))  # number of answers up to each score
    # The highest score is at most the k-th if all n are among the first `last` answers.
    at_most = np.array([np.exp(_log_choose(m, n) - _log_choose(total, n)) if m >= n else 0.0 for m in last.tolist()])
    assert len(distinct) == len(means)
    return float((means * np.diff(at_most, prepend=0.0)).sum())


def _log_choose(n: int, k: int) -> float:
    return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
