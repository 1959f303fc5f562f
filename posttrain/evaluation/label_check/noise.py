"""The share of swapped labels, estimated from the margins of a model that was not trained on the pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import chi2

from posttrain.evaluation.intervals import Estimate, Result

SHARES = np.linspace(0.0, 0.5, 101)
"""The shares that are tried: in steps of 0.5 %. At one half, labels would be independent of the margins."""
MIN_PAIRS = 50


class LabelNoise(Result):
    """Share of pairs whose labels were swapped, beyond the disagreement that small margins explain.

    The model of a label: people prefer the chosen response with probability sigmoid(scale x margin), and a share of the labels
    is swapped afterwards. Scale and share maximise the likelihood; the interval is that of the profile likelihood.
    """

    share: Estimate
    scale: float
    """Log-odds for each nat of margin."""
    n_pairs: int

    def p_swapped(self, margins: np.ndarray) -> np.ndarray:
        """Return the probability that each label is swapped, given its margin."""
        swapped = self.share.value * expit(-self.scale * margins)
        kept = (1 - self.share.value) * expit(self.scale * margins)
        found: np.ndarray = swapped / (swapped + kept)
        return found


def estimate_noise(margins: np.ndarray, confidence: float) -> LabelNoise | None:
    """Return the share of swapped labels; None for fewer than `MIN_PAIRS` pairs.

    Args:
        margins: implicit margin of each pair in nats, above 0 if the chosen response ranks higher, by a model that was not
            trained on the pair.
        confidence: level of the interval. The labels count as independent.
    """
    spread = float(np.abs(margins).mean())
    if len(margins) < MIN_PAIRS or not spread > 0:
        return None
    unit = margins / spread

    def loss(log_scale: float, share: float) -> float:
        p = expit(np.exp(log_scale) * unit)
        return -float(np.log((1 - share) * p + share * (1 - p) + 1e-300).sum())

    best = [minimize_scalar(loss, bounds=(-7, 5), args=(float(share),), method="bounded") for share in SHARES]
    losses = np.array([found.fun for found in best])
    first = int(losses.argmin())
    inside = SHARES[2 * (losses - losses[first]) <= chi2.ppf(confidence, 1)]
    share = Estimate(value=float(SHARES[first]), low=float(inside.min()), high=float(inside.max()))
    return LabelNoise(share=share, scale=float(np.exp(best[first].x)) / spread, n_pairs=len(margins))


def noise_of_test_pairs(pairs: pa.Table, confidence: float) -> LabelNoise | None:
    """Return the share of swapped labels among test pairs, scored as in `Evaluation.pairs`; None without SFT and DPO."""
    sides = [f"{stage}_{side}_logps" for stage in ("dpo", "sft") for side in ("chosen", "rejected")]
    if not set(sides) <= set(pairs.column_names):
        return None
    chosen, rejected, sft_chosen, sft_rejected = (pairs[name].to_numpy().astype(np.float64) for name in sides)
    return estimate_noise((chosen - rejected) - (sft_chosen - sft_rejected), confidence)
