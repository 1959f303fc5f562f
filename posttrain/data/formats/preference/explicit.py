"""Prompt, chosen and rejected in a column each: text, or the prompt as a list of messages."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.formats.layout import Pair, Values, as_turns

COLUMNS = REQUIRED_COLUMNS["explicit"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Whether these columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Pair:
    """The pair in a row; plain text is one turn of the user, or of the assistant."""
    return Pair(
        as_turns(row.get("prompt"), "user"),
        as_turns(row.get("chosen"), "assistant"),
        as_turns(row.get("rejected"), "assistant"),
    )
