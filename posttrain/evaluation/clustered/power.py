"""Statistical power: which gain a test set can detect, and how many prompts a wanted gain needs."""

from __future__ import annotations

import math

from scipy.stats import norm

POWER = 0.8
"""Probability with which a gain is to be found."""
TYPICAL_DISCORDANCE = 0.1
"""Share of pairs on which two models differ, assumed before there are two models to compare."""


def detectable_gain(
    n_pairs: int, p_value: float, discordance: float = TYPICAL_DISCORDANCE, design_effect: float = 1.0
) -> float:
    """Return the smallest true gain that is found with a probability of 80 %.

    At a p-value of 0.05 it is 2.8 x sqrt(discordance x design effect / pairs).

    Args:
        p_value: largest two-sided p-value that counts as a gain.
        discordance: mean squared difference of the two models; without ties, the share of pairs on which they differ.
        design_effect: as in `Gain`.

    Source: Miettinen 1968.
    """
    return _factor(p_value) * math.sqrt(discordance * design_effect / n_pairs)


def pairs_needed(
    gain: float, p_value: float, discordance: float = TYPICAL_DISCORDANCE, design_effect: float = 1.0
) -> int:
    """Return the number of pairs with which a gain is found with a probability of 80 %."""
    return math.ceil(_factor(p_value) ** 2 * discordance * design_effect / gain**2)


def _factor(p_value: float) -> float:
    return float(norm.isf(p_value / 2) + norm.ppf(POWER))
