"""Instruction sets with a prompt and a completion: text, or lists of messages."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.formats.layout import Example, Values, as_turns

COLUMNS = REQUIRED_COLUMNS["prompt_completion"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Whether these columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Example:
    """The example in a row; plain text is one turn of the user, or of the assistant."""
    return Example(as_turns(row.get("prompt"), "user"), as_turns(row.get("completion"), "assistant"))
