"""Instruction sets as in Stanford Alpaca: instruction, an input that may be missing, output."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.formats.layout import Example, Values, answer, instruct

COLUMNS = REQUIRED_COLUMNS["alpaca"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Whether these columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Example:
    """The example in a row; an input follows its instruction after a blank line."""
    return Example(instruct(row.get("instruction"), row.get("input")), answer(row.get("output")))
