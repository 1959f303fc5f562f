"""One message a row, with its parent and its rank among its siblings, as OpenAssistant's oasst1 has on the Hub.

Source: Köpf et al. 2023, OpenAssistant/oasst1. A rank of 0 is the best. A deleted message is used in nothing, nor is what
follows it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Turn, Unusable
from posttrain.data.formats.layout import Found, Pair, Scored, Values, as_number, as_text, as_turns, rank

COLUMNS = REQUIRED_COLUMNS["oasst_messages"]


class Message(NamedTuple):
    """A message of a tree."""

    turn: Turn
    rank: float | None
    parent: int | None
    """Its parent's place among the messages; None for the first of a tree."""


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Whether these columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def group(rows: Sequence[Values]) -> list[list[Found] | Unusable]:
    """What each row gives: a message that was answered several times, the pairs of its answers; what is only in these, none.

    A tree's messages may stand anywhere in the source.
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
    """A message's turn and rank.

    Raises:
        Unusable: it was deleted, or has no text or role.
    """
    if row.get("deleted"):
        raise Unusable("deleted")
    turn = as_turns([{"role": row.get("role"), "content": row.get("text")}], "user")[0]
    return turn, None if row.get("rank") is None else as_number(row["rank"])


def sibling_pairs(messages: dict[int, Message]) -> tuple[dict[int, list[Scored]], set[int]]:
    """The pairs of ranked answers to each message, by the message's place, and the places of all messages in any pair.

    A score is the rank below 0, so the best has 0 and `min_score_difference` counts ranks.
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
    """The place of a row's parent: None for the first of a tree, -1 where there is no such row."""
    parent = row.get("parent_id")
    if parent is None:
        return None
    return place.get(parent, -1) if isinstance(parent, str) else -1


def _rooted(parents: dict[int, int | None], usable: set[int]) -> set[int]:
    """The places from which one gets to the first message of a tree by way of usable messages alone."""
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
    """The places of the messages from the first of the tree to this one."""
    thread, at = list[int](), last
    while True:
        thread.append(at)
        if (parent := messages[at].parent) is None:
            return thread[::-1]
        at = parent
