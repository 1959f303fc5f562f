"""Conditions of the gate about the answers that the models write. Each yields the reasons against promotion."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config import GateSection
from posttrain.evaluation.answers.answer_figures import AnswerComparison
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.labels import NAMES, percent, plain, points

FINDINGS = frozenset({"stop_rate_fell", "repetitive"})
"""Rules of the diagnosis about answers. They do not block: the conditions here do, by the settings of the gate."""


def answer_conditions(generations: Generations, newer: str, older: str, gate: GateSection) -> Iterator[str]:
    """Yield in what the answers are worse.

    Args:
        newer: stage of the model that may be promoted.
        older: stage of its opponent. The base model writes no answers, so against it only the newer model's own count.
    """
    if len(generations.exchanges) < gate.min_answers:
        return
    if comparison := generations.comparisons.get(f"{newer}_vs_{older}"):
        yield from _lost(comparison, older, gate)
        yield from _degenerate(comparison, older, gate)
    if (own := generations.stages[newer].repetition).low > gate.max_repetition:
        yield (
            f"the answers repeat themselves: {percent(own)} % of their 4-grams occurred before in the same answer "
            f"(gate.max_repetition: {100 * gate.max_repetition:g} %)"
        )


def _lost(comparison: AnswerComparison, older: str, gate: GateSection) -> Iterator[str]:
    for by, rate in comparison.win_rates.items():
        if rate.share.high < gate.min_win_rate:
            yield (
                f"by {by}, the answers win only {percent(rate.share)} % of the comparisons with those of {NAMES[older]} "
                f"(gate.min_win_rate: {100 * gate.min_win_rate:g} %)"
            )


def _degenerate(comparison: AnswerComparison, older: str, gate: GateSection) -> Iterator[str]:
    against = f"against {NAMES[older]}"
    if comparison.stop_rate.high < -gate.max_stop_loss:
        yield (
            f"fewer answers end with a stop token {against}: {points(comparison.stop_rate)} points "
            f"(gate.max_stop_loss: {100 * gate.max_stop_loss:g} points)"
        )
    if comparison.repetition.low > gate.max_repetition_gain:
        yield (
            f"the answers repeat themselves more {against}: {points(comparison.repetition)} points "
            f"(gate.max_repetition_gain: {100 * gate.max_repetition_gain:g} points)"
        )
    if comparison.empty.low > gate.max_empty_gain:
        yield (
            f"more answers are empty {against}: {points(comparison.empty)} points "
            f"(gate.max_empty_gain: {100 * gate.max_empty_gain:g} points)"
        )
    ratio = comparison.length_ratio
    if ratio.low > gate.max_length_ratio or ratio.high < 1 / gate.max_length_ratio:
        what = "longer" if ratio.value > 1 else "shorter"
        yield (
            f"the answers are far {what} {against}: {plain(ratio)} times the length "
            f"(gate.max_length_ratio: {gate.max_length_ratio:g})"
        )
