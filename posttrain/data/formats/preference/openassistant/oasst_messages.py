"""Layout of OpenAssistant's oasst1 on the Hub: one message per row, with its parent and its rank among its siblings.

Source: Köpf et al. 2023, OpenAssistant/oasst1. Rank 0 is the best. Deleted messages and their descendants are not used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Found, Pair, Scored, Values, as_number, rank
from posttrain.data.formats.turns import as_text, as_turns
from posttrain.data.rows import Turn

COLUMNS = REQUIRED_COLUMNS["oasst_messages"]


class Message(NamedTuple):
    """A message of a tree."""

    turn: Turn
    rank: float | None
    parent: int | None
    """Index of its parent; None for the root of a tree."""


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def group(rows: Sequence[Values]) -> list[list[Found] | Unusable]:
    """Return the result for each row: the pairs of ranked answers to its message, or why it is unusable.

    The list is empty for messages that are only part of other messages' pairs. The messages of a tree can be in any order.
    """
    outcomes: list[list[Found] | Unusable | None] = [None] * len(rows)
    place = dict[str, int]()
    turns = dict[int, tuple[Turn, float | None]]()
    for i, row in enumerate(rows):
        try:
            turns[i] = as_message(row)
            if (name := as_text(row.get("message_id"))) in place:
                raise Unusable("duplicate")
            place[name] = i
        except Unusable as unusable:
            outcomes[i] = unusable
    usable = {i for i in turns if outcomes[i] is None}
    parents = {i: _parent(rows[i], place) for i in usable}
    rooted = _rooted(parents, usable)
    messages = {i: Message(*turns[i], parents[i]) for i in rooted}
    pairs, used = sibling_pairs(messages)
    for i in usable:
        if i not in rooted:
            outcomes[i] = Unusable("parent_missing")
        elif i not in used:
            outcomes[i] = Unusable("no_rival")
        else:
            outcomes[i] = list(pairs.get(i, ()))
    return [outcome for outcome in outcomes if outcome is not None]


def as_message(row: Values) -> tuple[Turn, float | None]:
    """Return the turn and rank of a message.

    Raises:
        Unusable: the message was deleted or has no text or role.
    """
    if row.get("deleted"):
        raise Unusable("deleted")
    turn = as_turns([{"role": row.get("role"), "content": row.get("text")}], "user")[0]
    return turn, None if row.get("rank") is None else as_number(row["rank"])


def sibling_pairs(messages: dict[int, Message]) -> tuple[dict[int, list[Scored]], set[int]]:
    """Return the pairs of ranked answers by the index of their message, and the indices of all messages that are in a pair.

    The score is the negative rank, so the best answer has 0 and `min_score_difference` counts ranks.
    """
    answers = defaultdict[int, list[int]](list)
    for i, message in messages.items():
        if message.parent is not None and message.rank is not None and message.turn["role"] == "assistant":
            answers[message.parent].append(i)
    pairs, used = dict[int, list[Scored]](), set[int]()
    for parent, siblings in answers.items():
        scores = [-(messages[i].rank or 0.0) for i in siblings]
        try:
            ranked = rank(scores)
        except Unusable:
            continue
        thread = _thread(messages, parent)
        prompt = [messages[i].turn for i in thread]
        pairs[parent] = [
            Scored(Pair(prompt, [messages[siblings[i]].turn], [messages[siblings[j]].turn]), scores[i], scores[j])
            for i, j in ranked
        ]
        used.update(thread, (siblings[i] for pair in ranked for i in pair))
    return pairs, used


def _parent(row: Values, place: dict[str, int]) -> int | None:
    """Return the index of a row's parent: None for the root of a tree, -1 if the parent is missing."""
    parent = row.get("parent_id")
    if parent is None:
        return None
    return place.get(parent, -1) if isinstance(parent, str) else -1


def _rooted(parents: dict[int, int | None], usable: set[int]) -> set[int]:
    """Return the indices of messages whose ancestors are all usable."""
    rooted = dict[int | None, bool]({None: True})
    for start in parents:
        path, at = dict[int | None, None](), start
        while at not in rooted and at not in path and at in usable:
            path[at] = None
            at = parents[at]  # type: ignore[assignment,index]  # None ends the loop
        reached = rooted.get(at, False)
        rooted |= dict.fromkeys(path, reached)
    return {i for i, is_rooted in rooted.items() if is_rooted and i is not None}


def _thread(messages: dict[int, Message], last: int) -> list[int]:
    """Return the indices of the messages from the root of the tree to this one."""
    thread, at = list[int](), last
    while True:
        thread.append(at)
        if (parent := messages[at].parent) is None:
            return thread[::-1]
        at = parent
