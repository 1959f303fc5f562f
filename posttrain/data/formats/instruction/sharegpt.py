"""Layout of ShareGPT: `conversations` with `from` (human, gpt, system) and `value`, and an optional column `system`.

The response to the last user turn is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Example, Values, split_off_response
from posttrain.data.formats.turns import as_text, as_turns

COLUMNS = REQUIRED_COLUMNS["sharegpt"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Example:
    """Return the example in a row. A system prompt from the column `system` comes first."""
    if not isinstance(row.get("conversations"), list):
        raise Unusable("not_text")
    turns = as_turns(row["conversations"], "user")
    system = as_text(row.get("system") or "")
    if system.strip() and turns and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return split_off_response(turns)
