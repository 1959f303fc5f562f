"""Rules that detect problems of a run from its training curves, evaluation and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from posttrain.evaluation.diagnosis.conditions import (
    answers_grew,
    displacement,
    far_away,
    flat_loss,
    length_exploited,
    length_says_as_much,
    memorised,
    not_finite,
    overfit,
    reference_mismatch,
    slice_worse,
    stop_rate_fell,
    too_easy,
    unstable,
    validation_rose,
    weak_signal,
)
from posttrain.evaluation.diagnosis.evidence import MIN_SLICE_PAIRS, Curves, Evidence, History, Seen, Written
from posttrain.evaluation.figures import SEVERITIES, Figures, Finding, Severity


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


LOWER_RATE = "lower {stage}.learning_rate, raise its warmup_steps, or lower its max_grad_norm"
RULES = (
    *(
        Rule(
            "not_finite", "error", stage, 0, "any logged loss or gradient norm that is NaN or infinite",
            f"do not use this model; {LOWER_RATE.format(stage=stage)}", not_finite(stage),
        )
        for stage in ("sft", "dpo")
    ),
    Rule(
        "reference_mismatch", "error", "dpo", 0.5,
        "reference of another checkpoint, or a first reward outside +-{limit:g}",
        "score the reference with the checkpoint that DPO starts from; if logging_steps is above 1, a high learning rate can also "
        "cause this: lower it", reference_mismatch,
    ),
    *(
        Rule(
            "loss_did_not_fall", "warning", stage, 0.01,
            "mean loss of the last quarter less than {limit:.0%} below that of the first quarter",
            f"raise {stage}.learning_rate or {stage}.epochs; if the loss is noisy, lower the learning rate",
            flat_loss(stage),
        )
        for stage in ("sft", "dpo")
    ),
    *(
        Rule(
            "unstable", "warning", stage, 10, "a gradient norm above {limit:g} times the median",
            LOWER_RATE.format(stage=stage), unstable(stage),
        )
        for stage in ("sft", "dpo")
    ),
    Rule(
        "weak_signal", "warning", "dpo", 0.55, "implicit-reward accuracy on test below {limit:.0%}",
        "raise dpo.epochs or dpo.learning_rate, lower dpo.beta, or check the data: inconsistent labels, too few pairs, or "
        "responses truncated to dpo.max_length before they differ",
        weak_signal,
    ),
    Rule(
        "overfit", "warning", "dpo", 0.15, "training accuracy above validation accuracy by more than {limit:.0%}",
        "lower dpo.epochs, set dpo.early_stopping_patience, raise dpo.beta, or add data", overfit,
    ),
    Rule(
        "memorised", "warning", "dpo", 0.8, "training accuracy above {limit:.0%} on data labelled by people",
        "lower dpo.epochs, raise dpo.beta, or add data", memorised,
    ),
    Rule(
        "validation_loss_rose", "warning", "dpo", 0.05, "last validation loss more than {limit:.0%} above the best",
        "set dpo.early_stopping_patience, which keeps the best weights, or lower dpo.epochs or dpo.learning_rate",
        validation_rose,
    ),
    Rule(
        "likelihood_displacement", "warning", "dpo", 1.2,
        "chosen reward falls, margin grows, and perplexity of chosen responses is above {limit:g} times SFT's",
        "add an SFT term to the loss (dpo.loss_type: [sigmoid, sft]), raise dpo.beta, or lower dpo.learning_rate",
        displacement,
    ),
    Rule(
        "far_from_reference", "warning", "dpo", 0.5,
        "lower bound of the KL divergence from the reference above {limit:g} nats per token",
        "raise dpo.beta, lower dpo.learning_rate or dpo.epochs; read some of its answers", far_away,
    ),
    Rule(
        "length_exploited", "warning", "dpo", 0.2,
        "lower bound of the rank correlation of implicit margin and length difference above {limit:g}",
        "balance the lengths of chosen and rejected responses, or use dpo.loss_type: sigmoid_norm, which averages over tokens",
        length_exploited,
    ),
    Rule(
        "answers_grew", "warning", "dpo", 1.5, "answers more than {limit:g} times as long as SFT's",
        "check whether the data prefers long responses; use dpo.loss_type: sigmoid_norm, or raise dpo.beta", answers_grew,
    ),
    Rule(
        "stop_rate_fell", "warning", "dpo", 0.1, "share of answers that end with a stop token more than {limit:.0%} below SFT's",
        "raise dpo.max_length, so that responses keep their stop token in training; raise dpo.beta or lower dpo.learning_rate",
        stop_rate_fell,
    ),
    Rule(
        "slice_got_worse", "warning", "dpo", 0.0,
        f"a slice of at least {MIN_SLICE_PAIRS} pairs whose gain over SFT is surely below {{limit:g}}, with Holm's correction for "
        "the number of slices",
        "read the wrongly ranked pairs of this slice; add similar training data, or raise dpo.beta", slice_worse,
    ),
    Rule(
        "too_easy", "note", "data", 0.95,
        "accuracy of SFT on the test pairs, or of DPO on the first training pairs, above {limit:.0%}",
        "these pairs leave little to learn: use rejected responses that are closer in quality to the chosen ones", too_easy,
    ),
    Rule(
        "length_says_as_much", "note", "data", 0.0,
        "interval of the accuracy of preferring the longer response above 50%, and this accuracy above the model's",
        "length predicts the label as well as the model: compare accuracy on pairs "
        "with a shorter chosen response, or balance the data",
        length_says_as_much,
    ),
)  # fmt: skip
