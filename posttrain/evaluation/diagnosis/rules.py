"""Rules that detect problems of a run from its training curves, evaluation and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.evaluation.diagnosis.curve_conditions import (
    SPIKE,
    flat_loss,
    fluctuating,
    loss_rose,
    memorised,
    not_finite,
    overfit,
    reference_mismatch,
    unstable,
    validation_rose,
)
from posttrain.evaluation.diagnosis.evidence import (
    MIN_SLICE_PAIRS,
    Check,
    Curves,
    Evidence,
    TrainingLog,
    Written,
)
from posttrain.evaluation.diagnosis.figure_conditions import (
    answers_grew,
    displacement,
    far_away,
    few_rows,
    inverted,
    length_exploited,
    length_says_as_much,
    repetitive,
    sft_worse_than_base,
    slice_worse,
    stop_rate_fell,
    too_easy,
    truncated,
    weak_signal,
)
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
    check: Check


def diagnose(figures: Figures, sft: TrainingLog, dpo: TrainingLog, generations: Written | None = None) -> list[Finding]:
    """Return the findings of all rules, the most severe first.

    A rule reports a problem only if a whole confidence interval, of the level `figures.confidence`, lies beyond its limit.

    Args:
        figures: the evaluation of the run.
        sft, dpo: what each training logged; empty if the stage was not trained.
        generations: statistics of the answers, if there are any.
    """
    evidence = Evidence(figures, Curves(sft, figures.confidence), Curves(dpo, figures.confidence), generations)
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
        "reference of another checkpoint, or rewards outside +-{limit:g} before the first update",
        "score the reference with the checkpoint that DPO starts from", reference_mismatch,
    ),
    Rule(
        "inverted", "error", "dpo", 0.5, "interval of the implicit-reward accuracy on test entirely below {limit:.0%}",
        "chosen and rejected are probably swapped in a part of the data: compare a few training and test pairs, and "
        "check the columns "
        "and the layout of each source (`posttrain data CONFIG`, `posttrain label-check CONFIG`)", inverted,
    ),
    *(
        Rule(
            "loss_did_not_fall", "warning", stage, 0.01,
            "interval of the fall of the mean loss, first quarter to last, entirely below {limit:.0%} of it, and no rise",
            f"raise {stage}.learning_rate or {stage}.epochs", flat_loss(stage),
        )
        for stage in ("sft", "dpo")
    ),
    Rule(
        "loss_rose", "warning", "sft", 0, "interval of the rise of the mean loss, first quarter to last, entirely above {limit:g}",
        LOWER_RATE.format(stage="sft"), loss_rose("sft"),
    ),
    Rule(
        "loss_rose", "warning", "dpo", 0,
        "interval of the rise of the mean loss, first quarter to last, entirely above {limit:g}, or, if it started at "
        "ln 2, interval "
        "of the mean of the last quarter entirely above ln 2",
        "lower dpo.learning_rate; then raise dpo.beta or dpo.warmup_steps. A higher learning rate makes it worse", loss_rose("dpo"),
    ),
    *(
        Rule(
            "unstable", "warning", stage, 0.01,
            f"interval of the share of spikes entirely above {{limit:.0%}}: gradient norms above {SPIKE:g} times the "
            f"median of their "
            "neighbours", LOWER_RATE.format(stage=stage), unstable(stage),
        )
        for stage in ("sft", "dpo")
    ),
    Rule(
        "accuracy_fluctuates", "warning", "dpo", 2,
        "variance of the training accuracy around its trend, in the second half, at least {limit:g} times that of "
        "drawing the pairs "
        "(lower bound)",
        "lower dpo.learning_rate, or raise dpo.gradient_accumulation_steps, so that each step has more pairs", fluctuating,
    ),
    Rule(
        "few_rows", "warning", "sft", 200, "fewer than {limit:g} training rows",
        "add data, or set sft.early_stopping_patience; with so few rows, sft.epochs above 2 mostly memorises them", few_rows("sft"),
    ),
    Rule(
        "few_rows", "warning", "dpo", 200, "fewer than {limit:g} training pairs",
        "add pairs; keep dpo.epochs at 1, raise dpo.beta, and set dpo.early_stopping_patience", few_rows("dpo"),
    ),
    Rule(
        "sft_worse_than_base", "warning", "sft", 0.05,
        "perplexity of the chosen test responses more than {limit:.0%} above the base's, or preference accuracy more "
        "than {limit:.0%} "
        "below it (whole interval)",
        "check model.chat_template: it must be the one that the base model was trained with, if it was; check that "
        "sft.dataset answers "
        "like the chosen responses; lower sft.learning_rate", sft_worse_than_base,
    ),
    Rule(
        "weak_signal", "warning", "dpo", 0.55, "interval of the implicit-reward accuracy on test entirely below {limit:.0%}",
        "raise dpo.epochs or dpo.learning_rate, lower dpo.beta, or check the data: inconsistent labels, too few pairs, or "
        "responses truncated to dpo.max_length before they differ",
        weak_signal,
    ),
    Rule(
        "overfit", "warning", "dpo", 0.15,
        "interval of training accuracy minus implicit-reward accuracy on test entirely above {limit:.0%}",
        "lower dpo.epochs, set dpo.early_stopping_patience, raise dpo.beta, or add data", overfit,
    ),
    Rule(
        "memorised", "warning", "dpo", 0.8, "interval of the training accuracy entirely above {limit:.0%} on data "
        "labelled by people",
        "lower dpo.epochs, set dpo.stop_at_accuracy, raise dpo.beta, or add data", memorised,
    ),
    *(
        Rule(
            "validation_loss_rose", "warning", stage, 0.05,
            "interval of the rise of the validation loss, lowest to last, entirely above {limit:.0%} of it",
            f"set {stage}.early_stopping_patience, which keeps the best weights, or lower {stage}.epochs or {stage}.learning_rate",
            validation_rose(stage),
        )
        for stage in ("sft", "dpo")
    ),
    Rule(
        "likelihood_displacement", "warning", "dpo", 2.0,
        "interval of the perplexity of chosen test responses, as a multiple of SFT's, entirely above {limit:g}",
        "add an SFT term to the loss (dpo.loss_type: [sigmoid, sft]), raise dpo.beta, or lower dpo.learning_rate",
        displacement,
    ),
    Rule(
        "far_from_reference", "warning", "dpo", 1.0,
        "lower bound of the KL divergence from the reference above {limit:g} nats per token",
        "raise dpo.beta, lower dpo.learning_rate or dpo.epochs; read some of its answers", far_away,
    ),
    Rule(
        "length_exploited", "warning", "dpo", 0.2,
        "interval of the rank correlation of implicit margin and length difference beyond {limit:g} or -{limit:g}, "
        "and accuracy surely "
        "below 50% on the pairs whose chosen response does not have the preferred length, or no such pairs",
        "balance the lengths of chosen and rejected responses, or use dpo.loss_type: sigmoid_norm, which averages over tokens",
        length_exploited,
    ),
    Rule(
        "answers_grew", "warning", "dpo", 1.5, "interval of the answers' length, as a multiple of SFT's, entirely above {limit:g}",
        "check whether the data prefers long responses; use dpo.loss_type: sigmoid_norm, or raise dpo.beta", answers_grew,
    ),
    Rule(
        "stop_rate_fell", "error", "dpo", 0.1,
        "interval of the fall of the share of answers that end with a stop token, SFT to DPO, entirely above {limit:.0%}",
        "raise dpo.max_length, so that responses keep their stop token in training; raise dpo.beta or lower dpo.learning_rate",
        stop_rate_fell,
    ),
    Rule(
        "repetitive", "error", "dpo", 0.1,
        "interval of the rise of the share of repeated 4-grams in answers, SFT to DPO, entirely above {limit:.0%}",
        "lower dpo.learning_rate or raise dpo.beta; add an SFT term to the loss (dpo.loss_type: [sigmoid, sft])", repetitive,
    ),
    Rule(
        "slice_got_worse", "warning", "dpo", 0.0,
        f"a slice of at least {MIN_SLICE_PAIRS} pairs whose gain over SFT is surely below {{limit:g}}, with Holm's correction for "
        "the number of slices",
        "read the wrongly ranked pairs of this slice; add similar training data, or raise dpo.beta", slice_worse,
    ),
    Rule(
        "responses_truncated", "warning", "data", 0.05,
        "more than {limit:.0%} of the SFT rows, training pairs or test pairs with a truncated response",
        "raise sft.max_length or dpo.max_length; a truncated response has no stop token, and what tells the two "
        "responses apart may be "
        "cut off", truncated,
    ),
    Rule(
        "too_easy", "note", "data", 0.95,
        "interval of the accuracy of SFT on the test pairs, or of DPO on the first training pairs, entirely above {limit:.0%}",
        "these pairs leave little to learn: use rejected responses that are closer in quality to the chosen ones", too_easy,
    ),
    Rule(
        "length_says_as_much", "note", "data", -0.05,
        "accuracy of preferring the longer (or shorter) response above 50%, and at most {limit:.0%} from the model's "
        "(whole intervals)",
        "length predicts the label about as well as the model: compare the accuracies on pairs with a longer and with "
        "a shorter chosen "
        "response, or balance the data",
        length_says_as_much,
    ),
)  # fmt: skip
