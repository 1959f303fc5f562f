"""Conditions of the diagnosis rules on the test pairs, answers and data. Each returns the evidence that it finds, or None."""

from __future__ import annotations

from typing import Literal

from posttrain.evaluation.diagnosis.evidence import MIN_SLICE_PAIRS, Check, Evidence, Seen
from posttrain.evaluation.diagnosis.rule_intervals import difference, ratio
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.labels import percent, point_range, words


def weak_signal(evidence: Evidence, limit: float) -> Seen:
    accuracy = _implicit(evidence)
    if accuracy is None or accuracy.high >= limit or accuracy.high < 0.5:
        return None
    return (
        f"DPO learned little: its implicit reward ranks {percent(accuracy)} % of the test pairs correctly (chance: 50 %)",
        {"implicit_accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high},
    )


def inverted(evidence: Evidence, limit: float) -> Seen:
    accuracy = _implicit(evidence)
    if accuracy is None or accuracy.high >= limit:
        return None
    return (
        f"DPO learned the opposite of the test labels: its implicit reward ranks {percent(accuracy)} % of the test pairs "
        "correctly, fewer than chance",
        {"implicit_accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high},
    )


def _implicit(evidence: Evidence) -> Estimate | None:
    dpo = evidence.stage("dpo")
    return dpo.implicit_accuracy if dpo else None


def displacement(evidence: Evidence, limit: float) -> Seen:
    found = evidence.figures.perplexity_ratios.get("dpo_vs_sft")
    if found is None or found.low <= limit:
        return None
    return (
        f"DPO lowered the probability of the chosen responses too: their perplexity is {found.value:.2f} times that of SFT",
        {"perplexity_ratio": found.value, "low": found.low, "high": found.high},
    )


def sft_worse_than_base(evidence: Evidence, limit: float) -> Seen:
    perplexity = evidence.figures.perplexity_ratios.get("sft_vs_base")
    if perplexity is not None and perplexity.low > 1 + limit:
        return (
            f"SFT made the chosen test responses less likely: their perplexity is {perplexity.value:.2f} times that of the base",
            {"perplexity_ratio": perplexity.value, "low": perplexity.low, "high": perplexity.high},
        )
    comparison = evidence.figures.comparisons.get("sft_vs_base")
    if comparison is None or comparison.gain.high >= -limit:
        return None
    gain = comparison.gain
    return (
        f"SFT ranks fewer test pairs correctly than the base: {100 * gain.value:+.1f} points ({point_range(gain)})",
        {"gain": gain.value, "low": gain.low, "high": gain.high},
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
    correlation = evidence.figures.length.implicit_correlation
    if correlation is None or max(correlation.low, -correlation.high) <= limit:
        return None
    preferred, other = ("longer", "shorter") if correlation.value > 0 else ("shorter", "longer")
    strata = evidence.figures.length.strata
    hard = strata[f"chosen_{other}"].implicit_accuracy
    numbers = {"correlation": correlation.value, "low": correlation.low, "high": correlation.high}
    if hard is None:
        return (
            f"DPO's reward depends on length: it prefers {preferred} responses, and no test pair has a {other} chosen response, "
            "which could show another reason",
            numbers,
        )
    if hard.high >= 0.5:
        return None
    return (
        f"DPO's reward depends on length: it prefers {preferred} responses, and ranks only {hard.value:.1%} of the pairs with a "
        f"{other} chosen response correctly",
        numbers | {f"accuracy_{other}": hard.value, f"accuracy_{other}_high": hard.high},
    )


def length_says_as_much(evidence: Evidence, limit: float) -> Seen:
    newest = evidence.stage(evidence.figures.newest)
    longer = evidence.figures.length.prefer_longer
    if newest is None:
        return None
    accuracies = (newest.likelihood_accuracy, newest.implicit_accuracy)
    best = max((found for found in accuracies if found is not None), key=lambda found: found.value)
    shorter = Estimate(value=1 - longer.value, low=1 - longer.high, high=1 - longer.low)
    name, length = ("longer", longer) if longer.value >= 0.5 else ("shorter", shorter)
    if length.low <= 0.5 or difference(length, best).low <= limit:
        return None
    return (
        f"preferring the {name} response ranks {length.value:.1%} of the test pairs correctly, the model {best.value:.1%}",
        {f"prefer_{name}": length.value, "accuracy": best.value},
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


def answers_grew(evidence: Evidence, limit: float) -> Seen:
    found = evidence.answers()
    growth = ratio(found[1].n_tokens, found[0].n_tokens) if found else None
    if found is None or growth is None or growth.low <= limit:
        return None
    sft, dpo = (part.n_tokens.value for part in found)
    return (
        f"DPO's answers have {dpo:.0f} tokens on average, SFT's {sft:.0f}",
        {"sft_tokens": sft, "dpo_tokens": dpo, "ratio_low": growth.low},
    )


def stop_rate_fell(evidence: Evidence, limit: float) -> Seen:
    found = evidence.answers()
    if found is None or (fall := difference(found[0].stop_rate, found[1].stop_rate)).low <= limit:
        return None
    sft, dpo = (part.stop_rate.value for part in found)
    return (
        f"DPO ends {dpo:.1%} of its answers with a stop token, SFT {sft:.1%}",
        {"sft_stop_rate": sft, "dpo_stop_rate": dpo, "fall_low": fall.low},
    )


def repetitive(evidence: Evidence, limit: float) -> Seen:
    found = evidence.answers()
    if found is None or (rise := difference(found[1].repetition, found[0].repetition)).low <= limit:
        return None
    sft, dpo = (part.repetition.value for part in found)
    return (
        f"DPO repeats itself: {dpo:.1%} of the four-token sequences of an answer occurred before in it, in SFT's answers {sft:.1%}",
        {"sft_repetition": sft, "dpo_repetition": dpo, "rise_low": rise.low},
    )


def truncated(evidence: Evidence, limit: float) -> Seen:
    found = {}
    for label, counts, n_rows in (
        ("SFT rows", evidence.sft.counts, evidence.sft.n_rows),
        ("training pairs", evidence.dpo.counts, evidence.dpo.n_rows),
        ("test pairs", {f"n_{name}": n for name, n in evidence.figures.cut.items()}, evidence.figures.n_pairs),
    ):
        n_cut = int(max(counts.get(f"n_{name}_cut", 0) for name in ("chosen", "rejected", "completion")))
        if n_rows and n_cut > limit * n_rows:
            found[label] = (n_cut, n_rows)
    if not found:
        return None
    parts = (f"in {n_cut} of {n_rows} {label}" for label, (n_cut, n_rows) in found.items())
    return (
        f"a response lost its end to max_length {', '.join(parts)}",
        {f"share of {label}": n_cut / n_rows for label, (n_cut, n_rows) in found.items()},
    )


def few_rows(stage: Literal["sft", "dpo"]) -> Check:
    def check(evidence: Evidence, limit: float) -> Seen:
        n_rows = evidence.curves(stage).n_rows
        if n_rows is None or n_rows >= limit:
            return None
        kind = "pairs" if stage == "dpo" else "rows"
        return f"{stage.upper()} was trained on {n_rows} {kind} only", {f"n_{words(kind)}": float(n_rows)}

    return check


def too_easy(evidence: Evidence, limit: float) -> Seen:
    sft, quarters = evidence.stage("sft"), evidence.dpo.quarters("rewards/accuracies")
    if sft is not None and sft.likelihood_accuracy.low > limit:
        accuracy = sft.likelihood_accuracy
        return (
            f"SFT already ranks {accuracy.value:.1%} of the test pairs correctly",
            {"sft_accuracy": accuracy.value, "low": accuracy.low},
        )
    if quarters is None or quarters[0].mean.low <= limit:
        return None
    first = quarters[0].mean
    return (
        f"DPO ranked {first.value:.1%} of the training pairs correctly from the start",
        {"first_train_accuracy": first.value, "low": first.low},
    )
