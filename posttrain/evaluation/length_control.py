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
    def longer(self) -> np.ndarray:
        """Number of tokens by which the chosen response is longer; below 0 if it is shorter."""
        longer: np.ndarray = self.n_chosen - self.n_rejected
        return longer

    @property
    def rounding(self) -> np.ndarray:
        """Differences of log-probabilities up to this are rounding errors."""
        rounding: np.ndarray = ROUNDING * (np.abs(self.chosen) + np.abs(self.rejected))
        return rounding


def without_length(scores: Scores) -> np.ndarray:
    """Return the part of each margin that the difference in length does not explain: the residual of a line through 0.

    The line does not depend on which response of a pair is the chosen one. Residuals stay the same if a number of nats is added
    to every token. They are 0 for a model that gives every token the same probability.
    """
    margins, longer = scores.chosen - scores.rejected, scores.longer
    squares = float((longer**2).sum())
    slope = float((margins * longer).sum()) / squares if squares else 0.0
    residuals = margins - slope * longer
    return np.where(np.abs(residuals) <= scores.rounding, 0.0, residuals)


def per_token_margins(scores: Scores) -> np.ndarray:
    """Return the difference of the mean log-probabilities of a token."""
    margins = scores.chosen / scores.n_chosen - scores.rejected / scores.n_rejected
    tied = np.abs(margins) <= scores.rounding / np.minimum(scores.n_chosen, scores.n_rejected)
    return np.where(tied, 0.0, margins)
