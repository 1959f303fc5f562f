"""Layout of Stanford Alpaca: instruction, optional input, output."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.formats.layout import Example, Values, answer, instruct

COLUMNS = REQUIRED_COLUMNS["alpaca"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Example:
    """Return the example in a row. The input follows the instruction after a blank line."""
    return Example(instruct(row.get("instruction"), row.get("input")), answer(row.get("output")))
