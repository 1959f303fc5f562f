"""Layout with the columns prompt and completion, as text or lists of messages."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.formats.layout import Example, Values
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["prompt_completion"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Example:
    """Return the example in a row. Plain text becomes a user turn in the prompt and an assistant turn in the completion."""
    return Example(as_turns(row.get("prompt"), "user"), as_turns(row.get("completion"), "assistant"))
