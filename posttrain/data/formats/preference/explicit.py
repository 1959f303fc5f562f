"""Layout with the columns prompt, chosen and rejected as text. The prompt can also be a list of messages."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.formats.layout import Pair, Values
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["explicit"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Pair:
    """Return the pair in a row. Plain text becomes a user turn in the prompt and an assistant turn in the responses."""
    return Pair(
        as_turns(row.get("prompt"), "user"),
        as_turns(row.get("chosen"), "assistant"),
        as_turns(row.get("rejected"), "assistant"),
    )
