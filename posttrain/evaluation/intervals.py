"""Figures with their intervals: shares by Wilson, everything else by a bootstrap that is the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import norm

from posttrain.config import EvaluationSection

RESAMPLED_AT_ONCE = 2**22
"""Numbers drawn at once: bounds the memory of a bootstrap to some 32 MiB."""


class Result(BaseModel):
    """A part of what an evaluation found out."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(Result):
    """A figure and the ends of its interval."""

    value: float
    low: float
    high: float


def wilson(n_correct: float, n: int, confidence: float) -> Estimate:
    """A share with Wilson's score interval, which holds at 0 and 1 and for few pairs too.

    Source: Wilson 1927; a tie counts one half.
    """
    z = float(norm.ppf((1 + confidence) / 2))
    share = n_correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return Estimate(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def bootstrap_mean(values: np.ndarray, section: EvaluationSection) -> Estimate:
    """A mean with its percentile bootstrap interval (Efron 1979), the same for the same values and seed."""
    return bootstrap(lambda resampled: resampled.mean(axis=1), section, values)


def bootstrap(statistic: Callable[..., np.ndarray], section: EvaluationSection, *columns: np.ndarray) -> Estimate:
    """A statistic of rows with its percentile bootstrap interval; whole rows are drawn, so what is paired stays paired.

    Args:
        statistic: from each column as (resamples, rows) to (resamples,).
        columns: each of shape (rows,).
    """
    rows = [np.asarray(column, dtype=np.float64) for column in columns]
    n = len(rows[0])
    generator = np.random.default_rng(section.seed)
    drawn: list[np.ndarray] = []
    step = max(1, RESAMPLED_AT_ONCE // n)
    for start in range(0, section.n_bootstrap, step):
        index = generator.integers(0, n, (min(step, section.n_bootstrap - start), n))
        drawn.append(statistic(*(column[index] for column in rows)))
    tail = (1 - section.confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    (value,) = statistic(*(column[None, :] for column in rows))
    return Estimate(value=float(value), low=float(low), high=float(high))
