"""Layout of ms-swift: `messages` that end with the chosen response, and the rejected one as text or messages.

Source: ms-swift's guide to custom datasets: `rejected_response` is the last response, `rejected_messages` a whole conversation.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values, split_off_response, split_off_shared_prompt
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["ms_swift"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS) and not columns.isdisjoint({"rejected_response", "rejected_messages"})


def parse(row: Values) -> Pair:
    """Return the pair in a row."""
    turns = as_turns(row.get("messages"), "user")
    if row.get("rejected_messages"):
        return split_off_shared_prompt(turns, as_turns(row["rejected_messages"], "user"))
    prompt, chosen = split_off_response(turns)
    rejected = as_turns(row.get("rejected_response"), "assistant")
    if not chosen or not rejected:
        raise Unusable("empty")
    return Pair(prompt, chosen, rejected)
