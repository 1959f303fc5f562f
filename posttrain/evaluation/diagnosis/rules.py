"""Rules that detect problems of a run from its training curves, evaluation and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from posttrain.evaluation.diagnosis.evidence import MIN_LOGS, Curves, Evidence, History, Seen, Written
from posttrain.evaluation.figures import SEVERITIES, Figures, Finding, Severity

MIN_SLICE_PAIRS = 20
"""Minimum number of pairs in a slice for the slice rule."""


@dataclass(frozen=True)
class Rule:
    """A problem that a run can have, how to detect it and what to do about it."""

    name: str
    severity: Severity
    stage: Literal["data", "sft", "dpo"]
    limit: float
    threshold: str
    """When the rule applies, in words; `{limit}` is replaced by the number."""
    advice: str
    check: Callable[[Evidence, float], Seen]


def diagnose(
    figures: Figures, sft_history: History, dpo_history: History, generations: Written | None = None
) -> list[Finding]:
    """Return the findings of all rules, the most severe first.

    Args:
        figures: the evaluation of the run.
        sft_history, dpo_history: `Checkpoint.history`; empty if the stage was not trained.
        generations: statistics of the answers, if there are any.
    """
    evidence = Evidence(figures, Curves(sft_history), Curves(dpo_history), generations)
    findings = []
    for rule in RULES:
        if seen := rule.check(evidence, rule.limit):
            title, numbers = seen
            findings.append(
                Finding(
                    rule=rule.name,
                    severity=rule.severity,
                    stage=rule.stage,
                    title=title,
                    evidence=numbers,
                    threshold=rule.threshold.format(limit=rule.limit),
                    advice=rule.advice,
                )
            )
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))


def _not_finite(stage: Literal["sft", "dpo"]) -> Callable[[Evidence, float], Seen]:
    def check(evidence: Evidence, limit: float) -> Seen:
        curves: Curves = getattr(evidence, stage)
        n = sum(int((~np.isfinite(curves.train(name))).sum()) for name in ("loss", "grad_norm"))
        if n <= limit:
            return None
        return f"{stage.upper()}'s loss or gradient norm was NaN or infinite in {n} logs", {"n_not_finite": float(n)}

    return check


def _flat_loss(stage: Literal["sft", "dpo"]) -> Callable[[Evidence, float], Seen]:
    def check(evidence: Evidence, limit: float) -> Seen:
        ends = getattr(evidence, stage).ends("loss")
        if ends is None or ends[0] - ends[1] >= limit * abs(ends[0]):
            return None
        return (
            f"{stage.upper()}'s loss did not decrease: {ends[0]:.4g} at the start, {ends[1]:.4g} at the end",
            {"first_loss": ends[0], "last_loss": ends[1]},
        )

    return check


def _unstable(stage: Literal["sft", "dpo"]) -> Callable[[Evidence, float], Seen]:
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


def _reference_mismatch(evidence: Evidence, limit: float) -> Seen:
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


def _weak_signal(evidence: Evidence, limit: float) -> Seen:
    dpo = evidence.stage("dpo")
    if dpo is None or dpo.implicit_accuracy is None or dpo.implicit_accuracy.value >= limit:
        return None
    accuracy = dpo.implicit_accuracy
    return (
        f"DPO learned little: its implicit reward ranks {accuracy.value:.1%} of the test pairs correctly (chance: 50%)",
        {"implicit_accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high},
    )


def _overfit(evidence: Evidence, limit: float) -> Seen:
    ends, validation = evidence.dpo.ends("rewards/accuracies"), evidence.dpo.validation("rewards/accuracies")
    if ends is None or not len(validation) or ends[1] - validation[-1] <= limit:
        return None
    return (
        f"DPO ranks {ends[1]:.1%} of the training pairs correctly, but only {validation[-1]:.1%} of the validation pairs",
        {"train_accuracy": ends[1], "validation_accuracy": float(validation[-1])},
    )


def _memorised(evidence: Evidence, limit: float) -> Seen:
    dpo, ends = evidence.stage("dpo"), evidence.dpo.ends("rewards/accuracies")
    if dpo is None or dpo.true_agreement is not None or ends is None or ends[1] <= limit:
        return None
    return (
        f"DPO ranks {ends[1]:.1%} of the training pairs correctly, which is more than human annotators usually agree",
        {"train_accuracy": ends[1]},
    )


def _validation_rose(evidence: Evidence, limit: float) -> Seen:
    losses = evidence.dpo.validation("loss")
    if len(losses) < 2 or not np.isfinite(losses).all() or losses[-1] <= losses.min() * (1 + limit):
        return None
    return (
        f"DPO's validation loss rose again: {losses.min():.4g} at best, {losses[-1]:.4g} at the end",
        {"best_validation_loss": float(losses.min()), "last_validation_loss": float(losses[-1])},
    )


def _displacement(evidence: Evidence, limit: float) -> Seen:
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


def _far_away(evidence: Evidence, limit: float) -> Seen:
    dpo = evidence.stage("dpo")
    kl = dpo.kl_nats_per_token if dpo else None
    if kl is None or kl.low <= limit:
        return None
    return (
        f"DPO is far from its reference: KL divergence of {kl.value:.2f} nats per token",
        {"kl_nats_per_token": kl.value, "low": kl.low, "high": kl.high},
    )


def _length_exploited(evidence: Evidence, limit: float) -> Seen:
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


def _answers_grew(evidence: Evidence, limit: float) -> Seen:
    stages = evidence.generations.stages if evidence.generations else {}
    if not {"sft", "dpo"} <= stages.keys():
        return None
    sft, dpo = stages["sft"].n_tokens.value, stages["dpo"].n_tokens.value
    if dpo <= limit * sft:
        return None
    return f"DPO's answers have {dpo:.0f} tokens on average, SFT's {sft:.0f}", {"sft_tokens": sft, "dpo_tokens": dpo}


def _stop_rate_fell(evidence: Evidence, limit: float) -> Seen:
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


def _too_easy(evidence: Evidence, limit: float) -> Seen:
    sft, ends = evidence.stage("sft"), evidence.dpo.ends("rewards/accuracies")
    if sft is not None and sft.likelihood_accuracy.value > limit:
        accuracy = sft.likelihood_accuracy.value
        return f"SFT already ranks {accuracy:.1%} of the test pairs correctly", {"sft_accuracy": accuracy}
    if ends is not None and ends[0] > limit:
        return f"DPO ranked {ends[0]:.1%} of the training pairs correctly from the start", {
            "first_train_accuracy": ends[0]
        }
    return None


def _length_says_as_much(evidence: Evidence, limit: float) -> Seen:
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


def _slice_worse(evidence: Evidence, limit: float) -> Seen:
    worse = [
        (part.gains["dpo_vs_sft"], f"{part.by} {part.name}")
        for part in evidence.figures.slices
        if part.n_pairs >= MIN_SLICE_PAIRS and "dpo_vs_sft" in part.gains and part.gains["dpo_vs_sft"].high < limit
    ]
    if not worse:
        return None
    worse.sort(key=lambda found: found[0].value)
    gain, label = worse[0]
    others = f", and on {len(worse) - 1} other slices" if len(worse) > 1 else ""
    return (
        f"DPO is worse than SFT on {label}: {100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        f"{others}",
        {slice_label: gain.value for gain, slice_label in worse[:5]},
    )


LOWER_RATE = "lower {stage}.learning_rate, raise its warmup_steps, or lower its max_grad_norm"
RULES = (
    *(
        Rule(
            "not_finite", "error", stage, 0, "any logged loss or gradient norm that is NaN or infinite",
            f"do not use this model; {LOWER_RATE.format(stage=stage)}", _not_finite(stage),
        )
        for stage in ("sft", "dpo")
    ),
    Rule(
        "reference_mismatch", "error", "dpo", 0.5,
        "reference of another checkpoint, or a first reward outside +-{limit:g}",
        "score the reference with the checkpoint that DPO starts from; if logging_steps is above 1, a high learning rate can also "
        "cause this: lower it", _reference_mismatch,
    ),
    *(
        Rule(
            "loss_did_not_fall", "warning", stage, 0.01,
            "mean loss of the last quarter less than {limit:.0%} below that of the first quarter",
            f"raise {stage}.learning_rate or {stage}.epochs; if the loss is noisy, lower the learning rate",
            _flat_loss(stage),
        )
        for stage in ("sft", "dpo")
    ),
    *(
        Rule(
            "unstable", "warning", stage, 10, "a gradient norm above {limit:g} times the median",
            LOWER_RATE.format(stage=stage), _unstable(stage),
        )
        for stage in ("sft", "dpo")
    ),
    Rule(
        "weak_signal", "warning", "dpo", 0.55, "implicit-reward accuracy on test below {limit:.0%}",
        "raise dpo.epochs or dpo.learning_rate, lower dpo.beta, or check the data: inconsistent labels, too few pairs, or "
        "responses truncated to dpo.max_length before they differ",
        _weak_signal,
    ),
    Rule(
        "overfit", "warning", "dpo", 0.15, "training accuracy above validation accuracy by more than {limit:.0%}",
        "lower dpo.epochs, set dpo.early_stopping_patience, raise dpo.beta, or add data", _overfit,
    ),
    Rule(
        "memorised", "warning", "dpo", 0.8, "training accuracy above {limit:.0%} on data labelled by people",
        "lower dpo.epochs, raise dpo.beta, or add data", _memorised,
    ),
    Rule(
        "validation_loss_rose", "warning", "dpo", 0.05, "last validation loss more than {limit:.0%} above the best",
        "set dpo.early_stopping_patience, which keeps the best weights, or lower dpo.epochs or dpo.learning_rate",
        _validation_rose,
    ),
    Rule(
        "likelihood_displacement", "warning", "dpo", 1.2,
        "chosen reward falls, margin grows, and perplexity of chosen responses is above {limit:g} times SFT's",
        "add an SFT term to the loss (dpo.loss_type: [sigmoid, sft]), raise dpo.beta, or lower dpo.learning_rate",
        _displacement,
    ),
    Rule(
        "far_from_reference", "warning", "dpo", 0.5,
        "lower bound of the KL divergence from the reference above {limit:g} nats per token",
        "raise dpo.beta, lower dpo.learning_rate or dpo.epochs; read some of its answers", _far_away,
    ),
    Rule(
        "length_exploited", "warning", "dpo", 0.2,
        "lower bound of the rank correlation of implicit margin and length difference above {limit:g}",
        "balance the lengths of chosen and rejected responses, or use dpo.loss_type: sigmoid_norm, which averages over tokens",
        _length_exploited,
    ),
    Rule(
        "answers_grew", "warning", "dpo", 1.5, "answers more than {limit:g} times as long as SFT's",
        "check whether the data prefers long responses; use dpo.loss_type: sigmoid_norm, or raise dpo.beta", _answers_grew,
    ),
    Rule(
        "stop_rate_fell", "warning", "dpo", 0.1, "share of answers that end with a stop token more than {limit:.0%} below SFT's",
        "raise dpo.max_length, so that responses keep their stop token in training; raise dpo.beta or lower dpo.learning_rate",
        _stop_rate_fell,
    ),
    Rule(
        "slice_got_worse", "warning", "dpo", 0.0,
        f"a slice of at least {MIN_SLICE_PAIRS} pairs whose interval of the gain over SFT lies entirely below {{limit:g}}",
        "read the wrongly ranked pairs of this slice; add similar training data, or raise dpo.beta", _slice_worse,
    ),
    Rule(
        "too_easy", "note", "data", 0.95,
        "accuracy of SFT on the test pairs, or of DPO on the first training pairs, above {limit:.0%}",
        "these pairs leave little to learn: use rejected responses that are closer in quality to the chosen ones", _too_easy,
    ),
    Rule(
        "length_says_as_much", "note", "data", 0.0,
        "interval of the accuracy of preferring the longer response above 50%, and this accuracy above the model's",
        "length predicts the label as well as the model: compare accuracy on pairs "
        "with a shorter chosen response, or balance the data",
        _length_says_as_much,
    ),
)  # fmt: skip
