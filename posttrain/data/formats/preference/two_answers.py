"""Layout with a prompt, two responses and a label of the better one: 1 or 2, a or b, model_a or model_b, or tie."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.formats.layout import Pair, Values, by_label
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["two_answers"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Pair:
    """Return the pair in a row."""
    prompt = as_turns(row.get("prompt"), "user")
    first, second = (as_turns(row.get(name), "assistant") for name in ("response_1", "response_2"))
    return by_label(prompt, first, second, row.get("label"))
