"""The rule that makes preference pairs of scored answers to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from posttrain.config import PairRuleSection


class ScoredAnswer(NamedTuple):
    """A text and the judge's score."""

    text: str
    score: float


def make_pairs(answers: Sequence[ScoredAnswer], rule: PairRuleSection) -> tuple[list[tuple[int, int]], str | None]:
    """Return the pairs of a prompt as indices (chosen, rejected), and why there is none.

    All pairs of answers that differ in text, whose scores differ by at least `min_margin` and whose lengths fit are sorted by
    margin, the largest first; of equal margins the answers that were given first come first. Then each pair is taken whose
    two texts are in no pair before, until there are `max_per_prompt`.

    Returns:
        The pairs, and one of `few_answers`, `identical`, `equal_scores`, `small_margin`, `lengths_differ` where there is none.
    """
    if len(answers) < 2:
        return [], "few_answers"
    places = range(len(answers))
    different = [(i, j) for i in places for j in places if answers[i].text.strip() != answers[j].text.strip()]
    better = [(i, j) for i, j in different if answers[i].score > answers[j].score]
    wide = [(i, j) for i, j in better if _margin(answers, i, j) >= rule.min_margin]
    fitting = [(i, j) for i, j in wide if _fits(answers[i].text, answers[j].text, rule.max_length_ratio)]
    steps = ((different, "identical"), (better, "equal_scores"), (wide, "small_margin"), (fitting, "lengths_differ"))
    if why := next((reason for left, reason in steps if not left), None):
        return [], why
    used: set[str] = set()
    taken: list[tuple[int, int]] = []
    for i, j in sorted(fitting, key=lambda pair: -_margin(answers, *pair)):
        texts = {answers[i].text.strip(), answers[j].text.strip()}
        if len(taken) < rule.max_per_prompt and not texts & used:
            taken.append((i, j))
            used |= texts
    return taken, None


def _margin(answers: Sequence[ScoredAnswer], i: int, j: int) -> float:
    return answers[i].score - answers[j].score


def _fits(one: str, other: str, max_ratio: float | None) -> bool:
    short, long = sorted((len(one.strip()), len(other.strip())))
    return max_ratio is None or long <= max_ratio * short
