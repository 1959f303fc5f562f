"""Layout with the column prompt alone: a text, a transcript or a list of messages to answer."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import ASKING, PromptOnly, Values
from posttrain.data.formats.preference.pair_columns import as_prompt

COLUMNS = ("prompt",)


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> PromptOnly:
    """Return the prompt in a row.

    Raises:
        Unusable: it is empty, or its last turn is the assistant's.
    """
    prompt = as_prompt(row.get("prompt"))
    if prompt and prompt[-1]["role"] not in ASKING:
        raise Unusable("turn_order")
    return PromptOnly(prompt)
