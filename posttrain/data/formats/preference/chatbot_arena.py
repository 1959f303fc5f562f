"""Layout of Chatbot Arena and MT-Bench's human judgements: two conversations with the same user, and a winner.

Source: Zheng et al. 2023, lmsys/chatbot_arena_conversations: `winner` is model_a, model_b, tie or tie (bothbad).
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values, by_label, split_off_shared_prompt
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["chatbot_arena"]
JUDGED = ("winner", "conversation_a", "conversation_b")
"""The columns of the label and of the two conversations: all labels of a source decide their meaning."""


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Pair:
    """Return the pair in a row. All turns before the last one must be the same in both conversations."""
    first, second = row.get("conversation_a"), row.get("conversation_b")
    if not isinstance(first, list) or not isinstance(second, list):
        raise Unusable("not_text")
    _, chosen, rejected = by_label([], as_turns(first, "user"), as_turns(second, "user"), row.get("winner"))
    return split_off_shared_prompt(chosen, rejected)
