"""Calibration of DPO's implicit reward as a probability that the label is right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.special import expit
from scipy.stats import t as student

from posttrain.config import EvaluationSection
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.figures import Calibration, Reliability
from posttrain.evaluation.intervals import Estimate, bootstrap_mean, cluster_share

N_CONFIDENCE_BINS = 10
MEAN_ABSOLUTE = float(np.sqrt(2 / np.pi))
"""Mean absolute value of a standard normal variable."""


def calibrate(log_odds: np.ndarray, section: EvaluationSection, clusters: Clusters | None = None) -> Calibration:
    """Return the calibration of the probabilities given by the log-odds of the chosen responses.

    Source: Guo et al. 2017, equation 3, with bins of equal width; Brier 1950.
    """
    clusters = clusters or Clusters.single(len(log_odds))
    confidence = expit(np.abs(log_odds))
    right = (np.sign(log_odds) + 1) / 2
    edges = np.linspace(0.5, 1.0, N_CONFIDENCE_BINS + 1)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, N_CONFIDENCE_BINS - 1)
    bins = []
    for i, (low, high) in enumerate(pairwise(edges.tolist())):
        inside = place == i
        n = int(inside.sum())
        mean = float(confidence[inside].mean()) if n else None
        accuracy = cluster_share(right[inside], clusters.where(inside), section.confidence) if n else None
        bins.append(Reliability(low=low, high=high, n_pairs=n, confidence=mean, accuracy=accuracy))
    return Calibration(
        bins=bins,
        ece=calibration_error(confidence, right, place, clusters, section.confidence),
        brier=bootstrap_mean((1 - expit(log_odds)) ** 2, section, clusters),
    )


def calibration_error(
    confidence: np.ndarray, right: np.ndarray, place: np.ndarray, clusters: Clusters, level: float
) -> Estimate:
    """Return the expected calibration error, corrected for its bias, with an interval.

    Noise adds to the distance of confidence and accuracy in each bin, so that even a calibrated model seems to have an error. The
    true distances are taken as normal, with the variance that the observed ones have beyond their sampling variance. The
    mean absolute distance that noise adds to these is subtracted. The interval is that of the sum of the distances with the
    signs observed. For its lower bound, noise is taken to add as much as it does to a calibrated model.

    Args:
        confidence, right: of each pair.
        place: number of the bin of each pair.
        level: of the interval.
    """
    n = len(confidence)
    excess = confidence - right
    weights, distances, variances = [], [], []
    for i in np.unique(place).tolist():
        inside = place == i
        own = clusters.where(inside)
        expected = float((confidence[inside] * (1 - confidence[inside])).mean() / own.n)
        weights.append(inside.sum() / n)
        distances.append(float(excess[inside].mean()))
        variances.append(own.mean_variance(excess[inside]) if own.n > 1 else expected)
    weight, distance, variance = np.array(weights), np.array(distances), np.array(variances)
    beyond = max(0.0, float((weight * (distance**2 - variance)).sum()))
    bias = MEAN_ABSOLUTE * float((weight * (np.sqrt(beyond + variance) - np.sqrt(beyond))).sum())
    observed = float((weight * np.abs(distance)).sum())
    value = max(0.0, observed - bias)
    largest_bias = MEAN_ABSOLUTE * float((weight * np.sqrt(variance)).sum())
    signs = dict(zip(np.unique(place).tolist(), np.sign(distance).tolist(), strict=True))
    if clusters.n < 2:
        return Estimate(value=value, low=0.0, high=1.0)
    spread = clusters.mean_variance(excess * np.array([signs[i] for i in place.tolist()])) ** 0.5
    half = float(student.ppf((1 + level) / 2, clusters.n - 1)) * spread
    return Estimate(value=value, low=max(0.0, observed - largest_bias - half), high=min(1.0, value + half))
