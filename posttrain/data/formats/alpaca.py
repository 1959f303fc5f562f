"""Instruction sets as in Stanford Alpaca: instruction, an input that may be missing, output."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Example, Values, as_text

COLUMNS = ("instruction", "output")


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Whether these columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Example:
    """The example in a row; an input follows its instruction after a blank line."""
    instruction, output = (as_text(row.get(name)) for name in COLUMNS)
    given = as_text(row.get("input") or "")
    if not instruction.strip():
        raise Unusable("empty")
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return Example([{"role": "user", "content": prompt}], [{"role": "assistant", "content": output}])
