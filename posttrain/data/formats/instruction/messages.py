"""Layout of conversations as `messages`. The response to the last user turn is trained on."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Example, Values, split_off_response
from posttrain.data.formats.turns import as_turns, is_serialised

COLUMNS = REQUIRED_COLUMNS["messages"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Example:
    """Return the example in a row."""
    messages = row.get("messages")
    if isinstance(messages, str) and not is_serialised(messages):
        raise Unusable("not_text")
    return split_off_response(as_turns(messages, "user"))
