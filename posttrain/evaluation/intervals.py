"""Estimates with confidence intervals: Wilson's for shares, a seeded bootstrap for means. The prompt is the unit of both."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import norm, rankdata, spearmanr
from scipy.stats import t as student

from posttrain.config import EvaluationSection
from posttrain.evaluation.clustered.clusters import Clusters

RESAMPLED_AT_ONCE = 2**22
"""Indices drawn at once; bounds the memory of a bootstrap to about 100 MiB."""
LEAST_ERROR = 0.2
"""Smallest standard error of a resample, as a share of the sample's. Resamples of equal values have none of their own."""


class Result(BaseModel):
    """Base class of evaluation results."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Estimate(Result):
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def wilson(n_correct: float, n: float, confidence: float, quantile: float | None = None) -> Estimate:
    """Return a share with Wilson's score interval, which is also valid for small n and for shares of 0 or 1.

    Args:
        n_correct: number of hits; a tie counts one half.
        n: number of trials, at least 1.
        confidence: level of the interval, e.g. 0.95.
        quantile: of another distribution than the normal one.

    Source: Wilson 1927.
    """
    z = float(norm.ppf((1 + confidence) / 2)) if quantile is None else quantile
    share = n_correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return Estimate(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def cluster_share(halves: np.ndarray, clusters: Clusters, confidence: float) -> Estimate:
    """Return the mean of values of 0, one half and 1 with Wilson's interval for as many pairs as are independent.

    That number is the number of pairs over the design effect, and the quantile is Student's. With one pair a prompt it is
    Wilson's interval.

    Source: Korn and Graubard 1998 for the effective sample size.
    """
    n_correct, n = float(halves.sum()), clusters.n_rows
    if clusters.n == n:
        return wilson(n_correct, n, confidence)
    n_independent = n / clusters.design_effect(halves)
    quantile = float(student.ppf((1 + confidence) / 2, max(1, clusters.n - 1)))
    return wilson(n_correct * n_independent / n, n_independent, confidence, quantile)


def bootstrap_mean(values: np.ndarray, section: EvaluationSection, clusters: Clusters | None = None) -> Estimate:
    """Return the mean with its bootstrap interval; see `bootstrap_ratio`."""
    return bootstrap_ratio(values, np.ones(len(values)), section, clusters)


def bootstrap_ratio(
    numerator: np.ndarray, denominator: np.ndarray, section: EvaluationSection, clusters: Clusters | None = None
) -> Estimate:
    """Return the sum of one column over the sum of another, with a studentised bootstrap interval; deterministic for a seed.

    Prompts are resampled with all of their rows. The studentised interval covers the mean of skewed values, where the
    percentile interval is too short at the long side. Its bounds are infinite for a single prompt.

    Args:
        numerator, denominator: arrays of shape (rows,), at least one row.
        clusters: prompts of the rows; None if each row has its own.

    Source: Efron and Tibshirani 1993, section 12.5.
    """
    clusters = clusters or Clusters.single(len(numerator))
    above, below = clusters.sums(numerator), clusters.sums(denominator)
    value = float(above.sum() / below.sum())
    if clusters.n < 2:
        return Estimate(value=value, low=-np.inf, high=np.inf)
    std_error = float(_std_error(above[None, :], below[None, :])[0])
    if std_error <= 1e-12 * abs(value):  # all equal but for rounding
        return Estimate(value=value, low=value, high=value)
    generator = np.random.default_rng(section.seed)
    drawn: list[np.ndarray] = []
    step = max(1, RESAMPLED_AT_ONCE // clusters.n)
    for start in range(0, section.n_bootstrap, step):
        index = generator.integers(0, clusters.n, (min(step, section.n_bootstrap - start), clusters.n))
        a, b = above[index], below[index]
        errors = np.maximum(_std_error(a, b), LEAST_ERROR * std_error)
        drawn.append((a.sum(axis=1) / b.sum(axis=1) - value) / errors)
    tail = (1 - section.confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return Estimate(value=value, low=value - float(high) * std_error, high=value - float(low) * std_error)


def rank_correlation(
    a: np.ndarray, b: np.ndarray, section: EvaluationSection, clusters: Clusters | None = None
) -> Estimate | None:
    """Return Spearman's rank correlation; None if one of the arrays is constant or there are fewer than 4 independent rows.

    Args:
        clusters: prompts of the rows; None if each row has its own.

    Source: Bonett and Wright 2000 for the interval: Fisher's z with variance (1 + r^2 / 2) / (n - 3), where n is the number of
    rows over the design effect of the products of ranks.
    """
    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    ranks = [rankdata(values) - (len(a) + 1) / 2 for values in (a, b)]
    n_independent = len(a) / (clusters.design_effect(ranks[0] * ranks[1]) if clusters else 1)
    if n_independent < 4:
        return None
    r = float(spearmanr(a, b).statistic)
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    half = float(norm.ppf((1 + section.confidence) / 2)) * np.sqrt((1 + r**2 / 2) / (n_independent - 3))
    return Estimate(value=r, low=float(np.tanh(z - half)), high=float(np.tanh(z + half)))


def exponential(estimate: Estimate) -> Estimate:
    """Return e to the power of an estimate, with that of its bounds."""
    value, low, high = (float(np.exp(end)) for end in (estimate.value, estimate.low, estimate.high))
    return Estimate(value=value, low=low, high=high)


def _std_error(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return the standard error of the ratio of sums, by linearisation. Shapes (samples, prompts), result (samples,)."""
    totals = below.sum(axis=1)
    residuals = above - (above.sum(axis=1) / totals)[:, None] * below
    errors: np.ndarray = np.sqrt((residuals**2).sum(axis=1)) / totals
    return errors
