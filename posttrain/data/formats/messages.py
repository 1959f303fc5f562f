"""Instruction sets of whole conversations: the response to the user's last turn is learned."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Example, Values, as_turns

COLUMNS = ("messages",)


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Whether these columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Example:
    """The example in a row."""
    if not isinstance(row.get("messages"), list):
        raise Unusable("not_text")
    turns = as_turns(row["messages"], "user")
    n_prompt = max((i + 1 for i, turn in enumerate(turns) if turn["role"] == "user"), default=0)
    if 0 < n_prompt == len(turns):
        raise Unusable("unanswered")
    return Example(turns[:n_prompt], turns[n_prompt:])
