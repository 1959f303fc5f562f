"""The difference of two models on the same pairs: its interval and its p-value, which never contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.signal import convolve
from scipy.stats import binom, norm
from scipy.stats import t as student

from posttrain.evaluation.clustered.clusters import Clusters
from posttrain.evaluation.intervals import Estimate

PER_PAIR = 60
"""Steps per pair to which sums are rounded for the sign flips. Halves, and the means of up to six opinions, are exact."""
LARGEST_EXACT = 2**20
"""Largest total of sums, in their largest common step, for which all sign flips are counted; above it, it is taken as normal."""


class Gain(Estimate):
    """Mean difference of two models, with its confidence interval. The interval excludes 0 exactly if the p-value is small."""

    n_pairs: int
    n_prompts: int
    """Number of prompts, or of conversations where pairs continue the same one: the unit of the interval and the test."""
    p_value: float
    """Two-sided p-value of no difference: the larger of the exact sign-flip test's and the interval's."""
    discordance: float
    """Mean squared difference; without ties, the share of pairs on which the models differ."""
    design_effect: float
    """How many times the variance exceeds that of as many independent pairs."""
    centre: float
    """Middle of the interval, which is slightly closer to 0 than the value."""
    std_error: float
    """Standard error of the centre."""

    def p_beyond(self, margin: float) -> float:
        """Return the two-sided p-value of a true difference of `margin`."""
        return max(self._p_of_interval(margin), self.p_value if margin == 0 else 0.0)

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Return the interval at another level of confidence."""
        quantile = float(student.ppf((1 + confidence) / 2, _df(self.n_prompts)))
        low, high = self.centre - quantile * self.std_error, self.centre + quantile * self.std_error
        if self.p_value > 1 - confidence:
            low, high = min(low, 0.0), max(high, 0.0)
        return max(-1.0, min(low, self.value)), min(1.0, max(high, self.value))

    def _p_of_interval(self, margin: float) -> float:
        return float(2 * student.sf(abs(self.centre - margin) / self.std_error, _df(self.n_prompts)))


def paired_gain(differences: np.ndarray, clusters: Clusters, confidence: float) -> Gain:
    """Return the mean of differences in correctness, with an interval and a p-value that take the prompt as the unit.

    The interval adds two prompts, one gained and one lost, and takes the standard error between prompts and Student's t. So it
    has a width even if no pair differs. With one pair a prompt it is the adjusted Wald interval of Bonett and Price. With
    several, each added prompt counts as many pairs as the design effect says.

    The p-value is that of the exact test that flips the sign of each prompt's sum; with one pair a prompt and no ties it is
    McNemar's. If the interval excludes 0 and the test does not, the interval is extended to 0; if the test does and the
    interval does not, the p-value is the interval's.

    Args:
        differences: from -1 to 1, of shape (pairs,), at least one.
        clusters: prompts of the pairs.

    Source: Bonett and Price 2012; Fagerland et al. 2014 for its comparison with Newcombe's; McNemar 1947.
    """
    differences = differences.astype(np.float64)
    effect = clusters.design_effect(differences)
    n = clusters.n_rows + 2 * effect
    sums = clusters.sums(differences)
    centre = float(sums.sum()) / n
    residuals = np.append(sums - centre * clusters.sizes, effect * np.array([1 - centre, -1 - centre]))
    std_error = float(np.sqrt((residuals**2).sum())) / n
    gain = Gain(
        value=float(differences.mean()),
        low=-1.0,
        high=1.0,
        n_pairs=clusters.n_rows,
        n_prompts=clusters.n,
        p_value=sign_flip_p_value(sums),
        discordance=float((differences**2).mean()),
        design_effect=effect,
        centre=centre,
        std_error=std_error,
    )
    gain = gain.model_copy(update={"p_value": max(gain.p_value, gain._p_of_interval(0.0))})
    low, high = gain.bounds(confidence)
    return gain.model_copy(update={"low": low, "high": high})


def sign_flip_p_value(sums: np.ndarray) -> float:
    """Return the two-sided p-value of sums that are as likely positive as negative, by all flips of their signs.

    The distribution of the total is computed exactly, as the convolution of one binomial distribution for each size of sum.

    Args:
        sums: sum of the differences of each prompt; zeros do not count.
    """
    steps = np.rint(PER_PAIR * sums).astype(np.int64)
    if steps.sum() == 0:
        return 1.0
    steps //= np.gcd.reduce(steps)
    observed = abs(int(steps.sum()))
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    if int((sizes * counts).sum()) > LARGEST_EXACT:
        return float(2 * norm.sf(observed / np.sqrt((sizes**2 * counts).sum())))
    if len(sizes) == 1:
        n_ahead = (observed // int(sizes[0]) + int(counts[0])) // 2
        return min(1.0, float(2 * binom.sf(n_ahead - 1, counts[0], 0.5)))
    total = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        one = np.zeros(2 * size * count + 1)
        one[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        total = convolve(total, one)
    beyond = float(total[len(total) // 2 + observed :].sum())
    return min(1.0, max(0.0, 2 * beyond))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number.

    Source: Holm 1979.
    """
    order = np.argsort(p_values)
    adjusted, largest = np.empty(len(order)), 0.0
    for rank, i in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    found: list[float] = adjusted.tolist()
    return found


def _df(n_prompts: int) -> int:
    return max(1, n_prompts - 1)
