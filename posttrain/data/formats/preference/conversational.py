"""Layout with chosen and rejected as lists of messages: conversations, or responses to a `prompt` column."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values, split_off_shared_prompt
from posttrain.data.formats.turns import as_turns, is_conversation

COLUMNS = REQUIRED_COLUMNS["conversational"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS) and any(is_conversation(row.get(name)) for row in rows for name in COLUMNS)


def parse(row: Values) -> Pair:
    """Return the pair in a row.

    If chosen and rejected are whole conversations, a plain-text prompt repeats the user turn and is ignored. A prompt of
    messages must be the start of both.
    """
    chosen, rejected = as_turns(row.get("chosen"), "assistant"), as_turns(row.get("rejected"), "assistant")
    if not chosen or not rejected:
        raise Unusable("empty")
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        return Pair(as_turns(row.get("prompt"), "user"), chosen, rejected)
    pair = split_off_shared_prompt(chosen, rejected)
    if isinstance(row.get("prompt"), list) and as_turns(row["prompt"], "user") != pair.prompt:
        raise Unusable("prompt_differs")
    return pair
