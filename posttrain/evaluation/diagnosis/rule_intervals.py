"""Confidence intervals of differences, ratios, curve means and rates, with which the rules decide."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, chi2, t

from posttrain.evaluation.intervals import Estimate


@dataclass(frozen=True)
class Sample:
    """Values of a curve, and the confidence level of the intervals computed from them."""

    values: np.ndarray
    confidence: float

    @property
    def mean(self) -> Estimate:
        """Mean with Student's t interval. The values count as independent."""
        return self.above(0.0)

    def above(self, other: Sample | float) -> Estimate:
        """Return this mean minus another one, with Welch's t interval.

        Source: Welch 1947.
        """
        samples = [self, other] if isinstance(other, Sample) else [self]
        subtracted = float(other.values.mean()) if isinstance(other, Sample) else other
        difference = float(self.values.mean()) - subtracted
        errors = [(_variance(part.values) / len(part.values), len(part.values) - 1) for part in samples]
        total = sum(error for error, _ in errors)
        if total == 0:
            return Estimate(value=difference, low=difference, high=difference)
        freedom = total**2 / sum(error**2 / n for error, n in errors)
        half = float(t.ppf((1 + self.confidence) / 2, freedom)) * math.sqrt(total)
        return Estimate(value=difference, low=difference - half, high=difference + half)


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1))


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Return the difference of two estimates, from their own intervals.

    The estimates count as independent. Where the same pairs or prompts are behind both, the true interval is narrower.

    Source: Newcombe 1998, method 10; Zou and Donner 2008 for other intervals than Wilson's.
    """
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value=value, low=low, high=high)


def ratio(first: Estimate, second: Estimate) -> Estimate | None:
    """Return the ratio of two positive estimates: `difference` of their logarithms. None if an interval reaches 0."""
    if min(first.low, second.low) <= 0:
        return None
    logs = (
        Estimate(**{name: math.log(value) for name, value in part.model_dump().items()}) for part in (first, second)
    )
    found = difference(*logs)
    return Estimate(value=math.exp(found.value), low=math.exp(found.low), high=math.exp(found.high))


def rate(n_events: int, n: int, confidence: float) -> Estimate:
    """Return a rate with its exact interval.

    Source: Clopper and Pearson 1934.
    """
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, n_events, n - n_events + 1)) if n_events else 0.0
    high = float(beta.ppf(1 - tail, n_events + 1, n - n_events)) if n_events < n else 1.0
    return Estimate(value=n_events / n, low=low, high=high)


def dispersion(shares: Sample, rows_per_share: float) -> Estimate | None:
    """Return the variance of shares around their linear trend, divided by the variance that drawing the rows causes.

    The interval is that of a variance with `n - 2` degrees of freedom. None if all or no rows count.

    Args:
        rows_per_share: number of rows that each share is computed from.
    """
    values, n = shares.values, len(shares.values)
    mean = float(values.mean())
    sampling = mean * (1 - mean) / rows_per_share
    if sampling <= 0:
        return None
    trend = np.polyval(np.polyfit(np.arange(n), values, 1), np.arange(n))
    squares = float(((values - trend) ** 2).sum()) / sampling
    low, high = (float(chi2.ppf(q, n - 2)) for q in ((1 - shares.confidence) / 2, (1 + shares.confidence) / 2))
    return Estimate(value=squares / (n - 2), low=squares / high, high=squares / low)
