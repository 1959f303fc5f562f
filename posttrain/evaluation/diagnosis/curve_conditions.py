"""Conditions of the diagnosis rules on training curves. Each returns the evidence that it finds, or None."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.ndimage import median_filter
from scipy.stats import norm

from posttrain.evaluation.diagnosis.evidence import MIN_LOGS, Check, Curves, Evidence, Seen
from posttrain.evaluation.diagnosis.rule_intervals import difference, dispersion, rate

LN_2 = math.log(2)
SPIKE = 10.0
"""A gradient norm is a spike if it exceeds the median of its neighbours by this factor."""
N_NEIGHBOURS = 25


def not_finite(stage: Literal["sft", "dpo"]) -> Check:
    def check(evidence: Evidence, limit: float) -> Seen:
        curves = evidence.curves(stage)
        n = sum(int((~np.isfinite(curves.train(name))).sum()) for name in ("loss", "grad_norm"))
        if n <= limit:
            return None
        return f"{stage.upper()}'s loss or gradient norm was NaN or infinite in {n} logs", {"n_not_finite": float(n)}

    return check


def flat_loss(stage: Literal["sft", "dpo"]) -> Check:
    def check(evidence: Evidence, limit: float) -> Seen:
        quarters = evidence.curves(stage).quarters("loss")
        if quarters is None:
            return None
        first, last = (float(part.values.mean()) for part in quarters)
        fall = quarters[0].above(quarters[1])
        if fall.high >= limit * abs(first) or fall.high < 0:  # a loss that rose is another finding
            return None
        return (
            f"{stage.upper()}'s loss did not decrease: {first:.4g} at the start, {last:.4g} at the end",
            {"first_loss": first, "last_loss": last, "fall_high": fall.high},
        )

    return check


def loss_rose(stage: Literal["sft", "dpo"]) -> Check:
    def check(evidence: Evidence, limit: float) -> Seen:
        curves = evidence.curves(stage)
        quarters = curves.quarters("loss")
        if quarters is None:
            return None
        first, last = quarters
        at_start = curves.first("loss")
        above_start = stage == "dpo" and at_start is not None and abs(at_start - LN_2) < 0.005
        if above_start and last.mean.low > LN_2 + limit:
            mean = last.mean
            return (
                f"DPO's loss ended at {mean.value:.4g}, above ln 2 = 0.6931, where it started: it separates the training pairs "
                "worse than the reference",
                {"start_loss": LN_2, "last_loss": mean.value, "low": mean.low},
            )
        rise = last.above(first)
        if rise.low <= limit:
            return None
        start, end = float(first.values.mean()), float(last.values.mean())
        return (
            f"{stage.upper()}'s training loss rose: {start:.4g} at the start, {end:.4g} at the end",
            {"first_loss": start, "last_loss": end, "rise_low": rise.low},
        )

    return check


def unstable(stage: Literal["sft", "dpo"]) -> Check:
    def check(evidence: Evidence, limit: float) -> Seen:
        norms = evidence.curves(stage).train("grad_norm")
        norms = norms[len(norms) // 10 :]  # the first steps are often unstable
        if len(norms) < MIN_LOGS or not np.isfinite(norms).all():
            return None
        typical = median_filter(norms, size=min(N_NEIGHBOURS, len(norms)), mode="reflect")
        n_spikes = int((norms > SPIKE * typical).sum())
        spikes = rate(n_spikes, len(norms), evidence.figures.confidence)
        if spikes.low <= limit:
            return None
        return (
            f"{stage.upper()}'s gradient norm rose above {SPIKE:g} times its usual value in {n_spikes} of {len(norms)} logs",
            {"n_spikes": float(n_spikes), "rate": spikes.value, "low": spikes.low, "largest": float(norms.max())},
        )

    return check


def reference_mismatch(evidence: Evidence, limit: float) -> Seen:
    digests = evidence.figures.digests
    if "reference" in digests and digests["reference"] != digests.get("sft"):
        return "DPO was trained against a different reference than this run's SFT model", {"same_checkpoint": 0.0}
    chosen, rejected = evidence.dpo.first("rewards/chosen"), evidence.dpo.first("rewards/rejected")
    if chosen is None or rejected is None or max(abs(chosen), abs(rejected)) <= limit:
        return None
    return (
        "DPO did not start from its reference: its first rewards are not 0",
        {"first_reward_chosen": chosen, "first_reward_rejected": rejected},
    )


def overfit(evidence: Evidence, limit: float) -> Seen:
    last, dpo = evidence.dpo.last("rewards/accuracies"), evidence.stage("dpo")
    if last is None or dpo is None or dpo.implicit_accuracy is None:
        return None
    gap = difference(last.mean, dpo.implicit_accuracy)
    if gap.low <= limit:
        return None
    train, test = last.mean.value, dpo.implicit_accuracy.value
    return (
        f"DPO's implicit reward ranks {train:.1%} of the training pairs correctly, but only {test:.1%} of the test pairs",
        {"train_accuracy": train, "test_accuracy": test, "gap_low": gap.low},
    )


def memorised(evidence: Evidence, limit: float) -> Seen:
    dpo, last = evidence.stage("dpo"), evidence.dpo.last("rewards/accuracies")
    if dpo is None or dpo.true_agreement is not None or last is None or last.mean.low <= limit:
        return None
    return (
        f"DPO ranks {last.mean.value:.1%} of the training pairs correctly, which is more than human annotators usually agree",
        {"train_accuracy": last.mean.value, "low": last.mean.low},
    )


def fluctuating(evidence: Evidence, limit: float) -> Seen:
    shares, n_pairs = evidence.dpo.last("rewards/accuracies", share=2), evidence.dpo.rows_per_log
    if shares is None or n_pairs is None or len(shares.values) < MIN_LOGS:
        return None
    found = dispersion(shares, n_pairs)
    if found is None or found.low <= limit:
        return None
    return (
        f"DPO's training accuracy fluctuates {found.value:.1f} times as much as the draw of {n_pairs:.0f} pairs for each log "
        "explains",
        {"variance_ratio": found.value, "low": found.low, "pairs_per_log": n_pairs},
    )


def validation_rose(stage: Literal["sft", "dpo"]) -> Check:
    def check(evidence: Evidence, limit: float) -> Seen:
        curves = evidence.curves(stage)
        losses = curves.validation("loss")
        error = _validation_error(curves, evidence.figures.confidence)
        if len(losses) < 2 or not np.isfinite(losses).all() or error is None:
            return None
        best, last = float(losses.min()), float(losses[-1])
        if last - best - error <= limit * abs(best):
            return None
        return (
            f"{stage.upper()}'s validation loss rose again: {best:.4g} at best, {last:.4g} at the end",
            {"best_validation_loss": best, "last_validation_loss": last, "rise_low": last - best - error},
        )

    return check


def _validation_error(curves: Curves, confidence: float) -> float | None:
    """Return the half-width of the interval of the last validation loss minus the lowest one; None if it is not known.

    The spread of the loss of one row is that between the logs of the training. The lowest of several losses is chosen, so the
    tail is divided by their number (Bonferroni). The rows are the same in both validations, which makes the interval too
    wide rather than too narrow.
    """
    parts, n_rows, n_validation = curves.quarters("loss"), curves.rows_per_log, curves.counts.get("n_validation")
    if parts is None or n_rows is None or not n_validation:
        return None
    spread = max(float(part.values.std(ddof=1)) for part in parts) * math.sqrt(n_rows)
    tail = (1 - confidence) / 2 / max(1, len(curves.validation("loss")) - 1)
    return float(norm.isf(tail)) * spread * math.sqrt(2 / n_validation)
