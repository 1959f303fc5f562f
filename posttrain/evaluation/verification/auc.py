"""Area under the ROC curve of answers that are grouped by question."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.intervals import Estimate, wilson


def clustered_auc(scores: np.ndarray, is_right: np.ndarray, clusters: Clusters, confidence: float) -> Estimate | None:
    """Return the probability that a right answer scores higher than a wrong one, of any questions; ties count one half.

    The interval takes questions as the unit, and is computed for the log-odds, so that it stays within 0 and 1.

    Args:
        scores: of each answer.
        is_right: whether it is right.
        clusters: questions of the answers.

    Returns:
        None if all answers are right, or all wrong.

    Source: Obuchowski 1997, with one factor n / (n - 1) for all questions.
    """
    right, wrong = scores[is_right], scores[~is_right]
    if not len(right) or not len(wrong):
        return None
    of_right, of_wrong = _share_below(right, wrong), 1 - _share_below(wrong, right)
    auc = float(of_right.mean())
    if clusters.n < 2 or auc in (0.0, 1.0):
        return wilson(auc * clusters.n, clusters.n, confidence)
    excess = np.zeros((2, clusters.n_rows))
    excess[0, is_right], excess[1, ~is_right] = of_right - auc, of_wrong - auc
    sums = clusters.sums(excess[0]) / len(right) + clusters.sums(excess[1]) / len(wrong)
    error = float(np.sqrt(clusters.n / (clusters.n - 1) * (sums**2).sum()))
    half = float(student.ppf((1 + confidence) / 2, clusters.n - 1)) * error / (auc * (1 - auc))
    low, high = expit(logit(auc) - half), expit(logit(auc) + half)
    return Estimate(value=auc, low=float(low), high=float(high))


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each value the share of others that are below it, with equal ones as one half."""
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    share: np.ndarray = (below + up_to) / (2 * len(others))
    return share
