"""Layout of preference fine-tuning at OpenAI, Azure and Together: `input` with messages and tools, and two outputs.

Source: the guide to direct preference optimization of OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["openai_preference"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def prepare(row: Values) -> Values:
    """Return the row with the tools of its input as a column, and the messages as its input."""
    given = row.get("input")
    if not isinstance(given, Mapping):
        return row
    inside = {f"input.{name}": value for name, value in given.items() if name not in ("messages", "tools")}
    return {**row, **inside, "input": given.get("messages"), "tools": given.get("tools") or row.get("tools")}


def parse(row: Values) -> Pair:
    """Return the pair in a row that `prepare` gave."""
    chosen, rejected = (as_turns(row.get(name), "assistant") for name in COLUMNS[1:])
    if not chosen or not rejected:
        raise Unusable("empty")
    return Pair(as_turns(row.get("input"), "user"), chosen, rejected)
