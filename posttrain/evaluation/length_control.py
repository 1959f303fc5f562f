"""Margins in which the length of the responses does not count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STRATA_SIGNS = {-1: "chosen_shorter", 0: "same_length", 1: "chosen_longer"}
"""Strata of pairs by the sign of the difference in length."""
ROUNDING = 1e-6
"""Relative rounding error of summed log-probabilities, which are stored as float32."""


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of pairs under one model, in nats, summed over tokens, and the numbers of those tokens."""

    chosen: np.ndarray
    rejected: np.ndarray
    n_chosen: np.ndarray
    n_rejected: np.ndarray

    @property
    def rounding(self) -> np.ndarray:
        """Differences of log-probabilities up to this are rounding errors."""
        rounding: np.ndarray = ROUNDING * (np.abs(self.chosen) + np.abs(self.rejected))
        return rounding


def per_token_margins(scores: Scores) -> np.ndarray:
    """Return the difference of the mean log-probabilities of a token.

    It stays the same if a number of nats is added to every token, and is 0 for a model that gives every token the same
    probability.
    """
    margins = scores.chosen / scores.n_chosen - scores.rejected / scores.n_rejected
    tied = np.abs(margins) <= scores.rounding / np.minimum(scores.n_chosen, scores.n_rejected)
    return np.where(tied, 0.0, margins)
