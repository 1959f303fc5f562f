"""Layout of LLMBar: an input, two outputs and the number of the better one.

Source: Zeng et al. 2023, https://github.com/princeton-nlp/LLMBar.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.formats.layout import Pair, Values, answer, by_label
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["llmbar"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Pair:
    """Return the pair in a row."""
    first, second = answer(row.get("output_1")), answer(row.get("output_2"))
    return by_label(as_turns(row.get("input"), "user"), first, second, row.get("label"))
