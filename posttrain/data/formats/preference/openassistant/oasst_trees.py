"""Layout of OpenAssistant's exports of oasst1: one tree of nested messages per row.

Source: Köpf et al. 2023, OpenAssistant/oasst1, `*_trees.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Scored, Values
from posttrain.data.formats.preference.openassistant.oasst_messages import Message, as_message, sibling_pairs

COLUMNS = REQUIRED_COLUMNS["oasst_trees"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS) and any(isinstance(row.get("prompt"), Mapping) for row in rows)


def parse(row: Values) -> list[Scored]:
    """Return the pairs of ranked answers in a row's tree. Unusable messages are skipped with their descendants."""
    if not isinstance(row.get("prompt"), Mapping):
        raise Unusable("not_text")
    messages = dict[int, Message]()
    waiting: list[tuple[Values, int | None]] = [(row["prompt"], None)]
    while waiting:
        node, parent = waiting.pop(0)
        try:
            turn, rank = as_message(node)
        except Unusable:
            if parent is None:
                raise
            continue
        messages[place := len(messages)] = Message(turn, rank, parent)
        replies = node.get("replies")
        waiting += [(reply, place) for reply in replies or () if isinstance(reply, Mapping)]
    pairs, _ = sibling_pairs(messages)
    if not pairs:
        raise Unusable("no_rival")
    return [pair for found in pairs.values() for pair in found]
