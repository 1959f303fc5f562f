"""What every layout of a row shares: what it must offer, what it gives, and how values become turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from posttrain.data.checks import Turn, Unusable

Values = Mapping[str, Any]
"""A row as its source has it: column name to value."""

ROLES = ("system", "user", "assistant")


class Pair(NamedTuple):
    """Two responses to one prompt, the better one first."""

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]


class Example(NamedTuple):
    """An instruction and the response to learn from."""

    prompt: list[Turn]
    completion: list[Turn]


Parsed = TypeVar("Parsed", Pair, Example)
Parsed_co = TypeVar("Parsed_co", Pair, Example, covariant=True)


class Layout(Protocol[Parsed_co]):
    """A module that understands one layout of rows."""

    @property
    def COLUMNS(self) -> tuple[str, ...]:
        """The columns without which the layout cannot be."""

    def matches(self, columns: set[str], rows: Sequence[Values]) -> bool:
        """Whether these columns and first rows have this layout."""

    def parse(self, row: Values) -> Parsed_co:
        """The pair or example in a row. Raises `Unusable` where there is none."""


def as_text(value: Any) -> str:
    """The value, which must be text."""
    if not isinstance(value, str):
        raise Unusable("not_text")
    return value


def as_turns(value: Any, role: str) -> list[Turn]:
    """The turns in a value: a list of messages as it is, plain text as one turn of `role`."""
    if isinstance(value, list):
        return [_as_turn(message) for message in value]
    return [{"role": role, "content": as_text(value)}]


def _as_turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise Unusable("not_text")
    if message.get("role") not in ROLES:
        raise Unusable("unknown_role")
    return {"role": message["role"], "content": as_text(message.get("content"))}


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, going by the first."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def split_off_shared_prompt(chosen: list[Turn], rejected: list[Turn]) -> Pair:
    """The pair in two whole conversations: the prompt is all that they share up to a user's turn.

    Raises:
        Unusable: they share no user's turn, or one of them ends with the user.
    """
    if not chosen or not rejected:
        raise Unusable("empty")
    if chosen[-1]["role"] == "user" or rejected[-1]["role"] == "user":
        raise Unusable("unanswered")
    n_prompt = 0
    for i, (ours, theirs) in enumerate(zip(chosen, rejected, strict=False)):
        if ours != theirs:
            break
        if ours["role"] == "user":
            n_prompt = i + 1
    if n_prompt == 0:
        raise Unusable("prompt_differs")
    return Pair(chosen[:n_prompt], chosen[n_prompt:], rejected[n_prompt:])
