"""Conditions of the diagnosis rules. Each returns the evidence that it finds, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from posttrain.evaluation.diagnosis.evidence import MIN_LOGS, MIN_SLICE_PAIRS, Curves, Evidence, Seen
from posttrain.evaluation.labels import point_range


def not_finite(stage: Literal["sft", "dpo"]) -> Callable[[Evidence, float], Seen]:
    def check(evidence: Evidence, limit: float) -> Seen:
        curves: Curves = getattr(evidence, stage)
        n = sum(int((~np.isfinite(curves.train(name))).sum()) for name in ("loss", "grad_norm"))
        if n <= limit:
            return None
        return f"{stage.upper()}'s loss or gradient norm was NaN or infinite in {n} logs", {"n_not_finite": float(n)}

    return check


def flat_loss(stage: Literal["sft", "dpo"]) -> Callable[[Evidence, float], Seen]:
    def check(evidence: Evidence, limit: float) -> Seen:
        ends = getattr(evidence, stage).ends("loss")
        if ends is None or ends[0] - ends[1] >= limit * abs(ends[0]):
            return None
        return (
            f"{stage.upper()}'s loss did not decrease: {ends[0]:.4g} at the start, {ends[1]:.4g} at the end",
            {"first_loss": ends[0], "last_loss": ends[1]},
        )

    return check


def unstable(stage: Literal["sft", "dpo"]) -> Callable[[Evidence, float], Seen]:
    def check(evidence: Evidence, limit: float) -> Seen:
        norms = getattr(evidence, stage).train("grad_norm")
        norms = norms[len(norms) // 10 :]  # the first steps are often unstable
        if len(norms) < MIN_LOGS or not np.isfinite(norms).all() or norms.max() <= limit * np.median(norms):
            return None
        ratio = float(norms.max() / np.median(norms))
        return (
            f"{stage.upper()}'s gradient norm rose to {ratio:.0f} times its median",
            {"largest_grad_norm": float(norms.max()), "median_grad_norm": float(np.median(norms))},
        )

    return check


def reference_mismatch(evidence: Evidence, limit: float) -> Seen:
    digests = evidence.figures.digests
    if "reference" in digests and digests["reference"] != digests.get("sft"):
        return "DPO was trained against a different reference than this run's SFT model", {"same_checkpoint": 0.0}
    chosen, rejected = evidence.dpo.train("rewards/chosen"), evidence.dpo.train("rewards/rejected")
    if not len(chosen) or not len(rejected):
        return None
    start = {"first_reward_chosen": float(chosen[0]), "first_reward_rejected": float(rejected[0])}
    if max(map(abs, start.values())) <= limit:
        return None
    return "DPO did not start from its reference: its first rewards are not 0", start


def weak_signal(evidence: Evidence, limit: float) -> Seen:
    dpo = evidence.stage("dpo")
    if dpo is None or dpo.implicit_accuracy is None or dpo.implicit_accuracy.value >= limit:
        return None
    accuracy = dpo.implicit_accuracy
    return (
        f"DPO learned little: its implicit reward ranks {accuracy.value:.1%} of the test pairs correctly (chance: 50%)",
        {"implicit_accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high},
    )


def overfit(evidence: Evidence, limit: float) -> Seen:
    ends, validation = evidence.dpo.ends("rewards/accuracies"), evidence.dpo.validation("rewards/accuracies")
    if ends is None or not len(validation) or ends[1] - validation[-1] <= limit:
        return None
    return (
        f"DPO ranks {ends[1]:.1%} of the training pairs correctly, but only {validation[-1]:.1%} of the validation pairs",
        {"train_accuracy": ends[1], "validation_accuracy": float(validation[-1])},
    )


def memorised(evidence: Evidence, limit: float) -> Seen:
    dpo, ends = evidence.stage("dpo"), evidence.dpo.ends("rewards/accuracies")
    if dpo is None or dpo.true_agreement is not None or ends is None or ends[1] <= limit:
        return None
    return (
        f"DPO ranks {ends[1]:.1%} of the training pairs correctly, which is more than human annotators usually agree",
        {"train_accuracy": ends[1]},
    )


def validation_rose(evidence: Evidence, limit: float) -> Seen:
    losses = evidence.dpo.validation("loss")
    if len(losses) < 2 or not np.isfinite(losses).all() or losses[-1] <= losses.min() * (1 + limit):
        return None
    return (
        f"DPO's validation loss rose again: {losses.min():.4g} at best, {losses[-1]:.4g} at the end",
        {"best_validation_loss": float(losses.min()), "last_validation_loss": float(losses[-1])},
    )


def displacement(evidence: Evidence, limit: float) -> Seen:
    chosen, margins = evidence.dpo.ends("rewards/chosen"), evidence.dpo.ends("rewards/margins")
    sft, dpo = evidence.stage("sft"), evidence.stage("dpo")
    if chosen is None or margins is None or sft is None or dpo is None:
        return None
    ratio = dpo.chosen_perplexity.value / sft.chosen_perplexity.value
    if not (chosen[1] < chosen[0] and margins[1] > margins[0] and ratio > limit):
        return None
    return (
        f"DPO lowered the probability of the chosen responses too: their perplexity is {ratio:.2f} times that of SFT",
        {
            "first_reward_chosen": chosen[0],
            "last_reward_chosen": chosen[1],
            "last_margin": margins[1],
            "perplexity_ratio": ratio,
        },
    )


def far_away(evidence: Evidence, limit: float) -> Seen:
    dpo = evidence.stage("dpo")
    kl = dpo.kl_nats_per_token if dpo else None
    if kl is None or kl.low <= limit:
        return None
    return (
        f"DPO is far from its reference: KL divergence of {kl.value:.2f} nats per token",
        {"kl_nats_per_token": kl.value, "low": kl.low, "high": kl.high},
    )


def length_exploited(evidence: Evidence, limit: float) -> Seen:
    length = evidence.figures.length
    correlation = length.implicit_correlation
    shorter, longer = (length.strata[name].implicit_accuracy for name in ("chosen_shorter", "chosen_longer"))
    if correlation is None or shorter is None or longer is None:
        return None
    if correlation.low <= limit or longer.value <= shorter.value:
        return None
    return (
        f"DPO's reward depends on length: it ranks {longer.value:.1%} of the pairs with a longer chosen response correctly, but "
        f"{shorter.value:.1%} of those with a shorter one",
        {"correlation": correlation.value, "accuracy_longer": longer.value, "accuracy_shorter": shorter.value},
    )


def answers_grew(evidence: Evidence, limit: float) -> Seen:
    stages = evidence.generations.stages if evidence.generations else {}
    if not {"sft", "dpo"} <= stages.keys():
        return None
    sft, dpo = stages["sft"].n_tokens.value, stages["dpo"].n_tokens.value
    if dpo <= limit * sft:
        return None
    return f"DPO's answers have {dpo:.0f} tokens on average, SFT's {sft:.0f}", {"sft_tokens": sft, "dpo_tokens": dpo}


def stop_rate_fell(evidence: Evidence, limit: float) -> Seen:
    stages = evidence.generations.stages if evidence.generations else {}
    if not {"sft", "dpo"} <= stages.keys():
        return None
    sft, dpo = stages["sft"].stop_rate.value, stages["dpo"].stop_rate.value
    if sft - dpo <= limit:
        return None
    return f"DPO ends {dpo:.1%} of its answers with a stop token, SFT {sft:.1%}", {
        "sft_stop_rate": sft,
        "dpo_stop_rate": dpo,
    }


def too_easy(evidence: Evidence, limit: float) -> Seen:
    sft, ends = evidence.stage("sft"), evidence.dpo.ends("rewards/accuracies")
    if sft is not None and sft.likelihood_accuracy.value > limit:
        accuracy = sft.likelihood_accuracy.value
        return f"SFT already ranks {accuracy:.1%} of the test pairs correctly", {"sft_accuracy": accuracy}
    if ends is not None and ends[0] > limit:
        return f"DPO ranked {ends[0]:.1%} of the training pairs correctly from the start", {
            "first_train_accuracy": ends[0]
        }
    return None


def length_says_as_much(evidence: Evidence, limit: float) -> Seen:
    newest = evidence.stage(evidence.figures.newest)
    longer = evidence.figures.length.prefer_longer
    if newest is None:
        return None
    best = max(e.value for e in (newest.likelihood_accuracy, newest.implicit_accuracy) if e is not None)
    if longer.low <= 0.5 or longer.value - best <= limit:
        return None
    return (
        f"preferring the longer response ranks {longer.value:.1%} of the test pairs correctly, the model {best:.1%}",
        {"prefer_longer": longer.value, "accuracy": best},
    )


def slice_worse(evidence: Evidence, limit: float) -> Seen:
    worse = [
        (part.gains["dpo_vs_sft"], f"{part.by} {part.name}")
        for part in evidence.figures.worse_slices("dpo_vs_sft", -limit, MIN_SLICE_PAIRS)
    ]
    if not worse:
        return None
    gain, label = worse[0]
    others = f", and on {len(worse) - 1} other slices" if len(worse) > 1 else ""
    return (
        f"DPO is worse than SFT on {label}: {100 * gain.value:+.1f} points ({point_range(gain)}){others}",
        {slice_label: gain.value for gain, slice_label in worse[:5]},
    )
