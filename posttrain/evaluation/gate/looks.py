"""Looks at a test set. Each look may promote a model by chance, so all looks that are planned share one error probability."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student

from posttrain.config import GateSection
from posttrain.evaluation.clustered.gains import Gain

CORRELATION = 0.5
"""Of the gains of equally good models over one champion on one test set: half of their variance is the champion's."""


class Look(BaseModel):
    """A comparison of a model with its opponent, among all that were made on the same test prompts or some of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = 1
    """Of this look, from 1, among those at any of these prompts."""
    used: float = 0.0
    """Share of the planned looks that was used before this one. An earlier look at some of the prompts counts as their share."""

    def is_within(self, gate: GateSection) -> bool:
        """Return whether this look is one of those planned."""
        return self.used + 1 / gate.planned_looks <= 1 + 1e-9


def look_level(gate: GateSection) -> float:
    """Return the largest two-sided p-value that counts as a gain in one of the planned looks.

    If all models are as good as the champion, at least one of the planned looks promotes with a probability of at most
    `gate.max_p_value`. It is computed for gains with a correlation of one half, as all looks compare with the same champion on
    the same pairs. No look has a larger level than `gate.max_p_value`.

    Source: Dunnett 1955, comparisons of several treatments with one control.
    """
    total, n = gate.max_p_value, gate.planned_looks
    shared = np.linspace(-8.5, 8.5, 2001)

    def any_promoted(threshold: float) -> float:
        own = norm.logcdf((threshold + np.sqrt(CORRELATION) * shared) / np.sqrt(1 - CORRELATION))
        return 1.0 - float(np.trapezoid(norm.pdf(shared) * np.exp(n * own), shared))

    if n == 1:
        return total
    threshold = float(brentq(lambda z: any_promoted(z) - total, -9.0, 9.0, xtol=1e-9))
    return min(total, 2 * float(norm.sf(threshold)))


def shrunken_gain(gain: Gain, level: float) -> float:
    """Return the gain of a promoted model, corrected for having been selected because it was large.

    It is the true gain at which one half of all promoted estimates would be larger than this one, and at least 0.

    Args:
        level: largest two-sided p-value that promotes.

    Source: Zhong and Prentice 2008 on estimates conditional on selection.
    """
    least = float(student.isf(level / 2, max(1, gain.n_prompts - 1))) * gain.std_error

    def larger(truth: float) -> float:
        chances = norm.logsf(gain.centre, truth, gain.std_error) - norm.logsf(least, truth, gain.std_error)
        return float(np.exp(chances)) - 0.5

    if gain.centre <= least or larger(0.0) >= 0:
        return 0.0
    return float(brentq(larger, 0.0, gain.centre))
