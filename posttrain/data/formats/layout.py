"""Common parts of the layouts: their protocols, their results, and how rows become pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from posttrain.data.checks import Unusable
from posttrain.data.formats.label_scale import TIES
from posttrain.data.formats.turns import as_text
from posttrain.data.rows import Turn

Values = Mapping[str, Any]
"""A row of a source: value by column name."""

ASKING = ("user", "tool")
"""Roles that the assistant answers."""


class Pair(NamedTuple):
    """A prompt with a chosen and a rejected response."""

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]


class Scored(NamedTuple):
    """A pair with scores of its responses; higher is better."""

    pair: Pair
    chosen_score: float
    rejected_score: float


class Example(NamedTuple):
    """An instruction and its response."""

    prompt: list[Turn]
    completion: list[Turn]


class PromptOnly(NamedTuple):
    """A prompt to collect answers to."""

    prompt: list[Turn]


Parsed = TypeVar("Parsed", Pair, Example, PromptOnly)
Parsed_co = TypeVar("Parsed_co", Pair, Example, PromptOnly, covariant=True)
Found = Pair | Scored | Example | PromptOnly
"""The result of parsing a row."""


class Layout(Protocol[Parsed_co]):
    """A module that parses one layout of rows."""

    @property
    def COLUMNS(self) -> tuple[str, ...]:
        """The columns that the layout requires."""

    def matches(self, columns: set[str], rows: Sequence[Values]) -> bool:
        """Return whether the columns and first rows have this layout."""


class RowLayout(Layout[Parsed_co], Protocol[Parsed_co]):
    """A layout in which each row can be parsed on its own."""

    def parse(self, row: Values) -> Parsed_co | Scored | list[Parsed_co] | list[Scored]:
        """Return the pair or example in a row, or a list of them with the largest score difference first.

        Raises:
            Unusable: the row has none.
        """


class GroupLayout(Layout[Parsed_co], Protocol[Parsed_co]):
    """A layout in which a pair consists of several rows."""

    def group(self, rows: Sequence[Values]) -> list[list[Found] | Unusable]:
        """Return the result for each row, in order: its pairs, or why it is unusable.

        The list is empty if the row is only part of other rows' pairs.
        """


def as_number(value: Any) -> float:
    """Return the value as a float; it must be a finite number or a string of one."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable("unknown_label")
    return number


def instruct(instruction: Any, given: Any) -> list[Turn]:
    """Return the prompt for an instruction and its input, separated by a blank line."""
    instruction, given = as_text(instruction), as_text(given or "")
    if not instruction.strip():
        raise Unusable("empty")
    return [{"role": "user", "content": f"{instruction}\n\n{given}" if given.strip() else instruction}]


def answer(text: Any) -> list[Turn]:
    """Return an assistant turn with plain text."""
    return [{"role": "assistant", "content": as_text(text)}]


def by_label(prompt: list[Turn], first: list[Turn], second: list[Turn], label: Any) -> Pair:
    """Return the pair of two answers.

    Args:
        prompt: the common prompt.
        first: the better answer if the label is first, 1, a or model_a.
        second: the better answer if the label is second, 2, b or model_b.
        label: the label. 0 is not accepted, because it means a tie in some datasets and the first answer in others.

    Raises:
        Unusable: the label is a tie or unknown.
    """
    name = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip().lower()
    if name in ("first", "1", "1.0", "a", "model_a"):
        return Pair(prompt, first, second)
    if name in ("second", "2", "2.0", "b", "model_b"):
        return Pair(prompt, second, first)
    raise Unusable("tie" if name in TIES else "unknown_label")


def rank(scores: Sequence[float]) -> list[tuple[int, int]]:
    """Return the indices (better, worse) of all pairs of unequal scores, the largest difference first.

    Raises:
        Unusable: all scores are equal, or there is only one.
    """
    places = range(len(scores))
    found = [(i, j) for i in places for j in places if scores[i] > scores[j]]
    if not found:
        raise Unusable("tie" if len(scores) > 1 else "no_rival")
    return sorted(found, key=lambda pair: scores[pair[1]] - scores[pair[0]])


def ranked_pairs(prompt: list[Turn], answers: Sequence[tuple[Any, float]]) -> list[Scored]:
    """Return all pairs of text answers with unequal scores, the largest difference first."""
    return [
        Scored(Pair(prompt, answer(answers[i][0]), answer(answers[j][0])), answers[i][1], answers[j][1])
        for i, j in rank([score for _, score in answers])
    ]


def split_off_response(turns: list[Turn]) -> Example:
    """Return the example in a conversation, whose response is everything after the last turn of the user or of a tool."""
    n_prompt = max((i + 1 for i, turn in enumerate(turns) if turn["role"] in ASKING), default=0)
    if 0 < n_prompt == len(turns):
        raise Unusable("unanswered")
    return Example(turns[:n_prompt], turns[n_prompt:])


def split_off_shared_prompt(chosen: list[Turn], rejected: list[Turn]) -> Pair:
    """Return the pair in two conversations, whose prompt is their longest common start that ends with a turn to answer.

    Raises:
        Unusable: they have no such start, or one of them ends with a turn to answer.
    """
    if not chosen or not rejected:
        raise Unusable("empty")
    if chosen[-1]["role"] in ASKING or rejected[-1]["role"] in ASKING:
        raise Unusable("unanswered")
    n_prompt = 0
    for i, (ours, theirs) in enumerate(zip(chosen, rejected, strict=False)):
        if ours != theirs:
            break
        if ours["role"] in ASKING:
            n_prompt = i + 1
    if n_prompt == 0:
        raise Unusable("prompt_differs")
    return Pair(chosen[:n_prompt], chosen[n_prompt:], rejected[n_prompt:])
