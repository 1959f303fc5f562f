"""Estimates with confidence intervals: Wilson's for shares, a seeded bootstrap for everything else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import norm

from posttrain.config import EvaluationSection

RESAMPLED_AT_ONCE = 2**22
"""Indices drawn at once; bounds the memory of a bootstrap to about 32 MiB."""


class Result(BaseModel):
    """Base class of evaluation results."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(Result):
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def wilson(n_correct: float, n: int, confidence: float) -> Estimate:
    """Return a share with Wilson's score interval, which is also valid for small n and for shares of 0 or 1.

    Args:
        n_correct: number of hits; a tie counts one half.
        n: number of trials, at least 1.
        confidence: level of the interval, e.g. 0.95.

    Source: Wilson 1927.
    """
    z = float(norm.ppf((1 + confidence) / 2))
    share = n_correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return Estimate(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def bootstrap_mean(values: np.ndarray, section: EvaluationSection) -> Estimate:
    """Return the mean with its percentile bootstrap interval; deterministic for a seed.

    Source: Efron 1979.
    """
    return bootstrap(lambda resampled: resampled.mean(axis=1), section, values)


def bootstrap(statistic: Callable[..., np.ndarray], section: EvaluationSection, *columns: np.ndarray) -> Estimate:
    """Return a statistic of rows with its percentile bootstrap interval. Whole rows are resampled, so pairing is preserved.

    Args:
        statistic: function of the columns, each of shape (resamples, rows), that returns shape (resamples,).
        columns: arrays of shape (rows,).
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
