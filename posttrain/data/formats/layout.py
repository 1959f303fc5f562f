"""What every layout of a row shares: what it must offer, what it gives, and how values become turns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from posttrain.data.checks import Turn, Unusable

Values = Mapping[str, Any]
"""A row as its source has it: column name to value."""

_ROLES = {
    **{role: role for role in ("system", "user", "assistant")},
    **{"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant"},
}
"""What layouts call a role: what we call it."""


class Pair(NamedTuple):
    """Two responses to one prompt, the better one first."""

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]


class Scored(NamedTuple):
    """A pair whose answers were scored, the more the better."""

    pair: Pair
    chosen_score: float
    rejected_score: float


class Example(NamedTuple):
    """An instruction and the response to learn from."""

    prompt: list[Turn]
    completion: list[Turn]


Parsed = TypeVar("Parsed", Pair, Example)
Parsed_co = TypeVar("Parsed_co", Pair, Example, covariant=True)
Found = Pair | Scored | Example
"""What a layout finds in a row."""


class Layout(Protocol[Parsed_co]):
    """A module that understands one layout of rows."""

    @property
    def COLUMNS(self) -> tuple[str, ...]:
        """The columns without which the layout cannot be."""

    def matches(self, columns: set[str], rows: Sequence[Values]) -> bool:
        """Whether these columns and first rows have this layout."""


class RowLayout(Layout[Parsed_co], Protocol[Parsed_co]):
    """A layout whose rows stand for themselves."""

    def parse(self, row: Values) -> Parsed_co | Scored | list[Parsed_co] | list[Scored]:
        """What is in a row: one pair or example, or a list of them, those furthest apart first.

        Raises `Unusable` where there is none.
        """


class GroupLayout(Layout[Parsed_co], Protocol[Parsed_co]):
    """A layout in which several rows make a pair."""

    def group(self, rows: Sequence[Values]) -> list[list[Found] | Unusable]:
        """What each row gives, in the rows' order: pairs, none where it only is a part of other rows' pairs, or why it is
        of no use."""


def as_text(value: Any) -> str:
    """The value, which must be text."""
    if not isinstance(value, str):
        raise Unusable("not_text")
    return value


def as_number(value: Any) -> float:
    """The value, which must be a finite number, or text of one."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable("unknown_label")
    return number


def as_turns(value: Any, role: str) -> list[Turn]:
    """The turns in a value: a list of messages as it is, plain text as one turn of `role`."""
    if isinstance(value, list):
        return [_as_turn(message) for message in value]
    return [{"role": role, "content": as_text(value)}]


def _as_turn(message: Any) -> Turn:
    """A message in OpenAI's form (`role`, `content`) or ShareGPT's (`from`, `value`)."""
    if not isinstance(message, Mapping):
        raise Unusable("not_text")
    if message.get("tool_calls"):
        raise Unusable("tool_call")
    openai = "role" in message
    role, content = (message.get(name) for name in (("role", "content") if openai else ("from", "value")))
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise Unusable("unknown_role")
    return {"role": _ROLES[role.lower()], "content": _as_content(content)}


def _as_content(content: Any) -> str:
    """Text, or OpenAI's list of parts where each of them is text."""
    if not isinstance(content, list):
        return as_text(content)
    return "".join(as_text(part.get("text") if isinstance(part, Mapping) else None) for part in content)


def as_tools(row: Values) -> str | None:
    """The tools in a row's column `tools`, as JSON that is the same for the same tools; None where it has none.

    Arrow fills the keys that one tool has and another has not with null, which is undone here.
    """
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError):
            raise Unusable("bad_tools") from None
    if not tools and tools in (None, []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Unusable("bad_tools")
    try:
        text = json.dumps(_without_nulls(tools), ensure_ascii=False, sort_keys=True, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        raise Unusable("bad_tools") from None
    return text


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, going by the first."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and ("role" in first or "from" in first)


def instruct(instruction: Any, given: Any) -> list[Turn]:
    """The prompt of an instruction, and of what it is to be carried out on, which follows after a blank line."""
    instruction, given = as_text(instruction), as_text(given or "")
    if not instruction.strip():
        raise Unusable("empty")
    return [{"role": "user", "content": f"{instruction}\n\n{given}" if given.strip() else instruction}]


def answer(text: Any) -> list[Turn]:
    """A response in plain text."""
    return [{"role": "assistant", "content": as_text(text)}]


def by_label(prompt: list[Turn], first: list[Turn], second: list[Turn], label: Any) -> Pair:
    """The pair of two answers.

    Args:
        prompt: what both answer.
        first: the answer that is better where the label is 1, a or model_a.
        second: the answer that is better where the label is 2, b or model_b.
        label: 0 is not taken, for it is a tie to some and the first answer to others.

    Raises:
        Unusable: neither is better, or the label is another.
    """
    name = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip().lower()
    if name in ("1", "1.0", "a", "model_a"):
        return Pair(prompt, first, second)
    if name in ("2", "2.0", "b", "model_b"):
        return Pair(prompt, second, first)
    raise Unusable("tie" if name in ("tie", "tie (bothbad)", "both_bad") else "unknown_label")


def rank(scores: Sequence[float]) -> list[tuple[int, int]]:
    """The places of the better and the worse in each pair of unequal scores, those furthest apart first.

    Raises:
        Unusable: no score is above another.
    """
    places = range(len(scores))
    found = [(i, j) for i in places for j in places if scores[i] > scores[j]]
    if not found:
        raise Unusable("tie" if len(scores) > 1 else "no_rival")
    return sorted(found, key=lambda pair: scores[pair[1]] - scores[pair[0]])


def ranked_pairs(prompt: list[Turn], answers: Sequence[tuple[Any, float]]) -> list[Scored]:
    """All pairs of answers, which are texts, with unequal scores, those furthest apart first."""
    return [
        Scored(Pair(prompt, answer(answers[i][0]), answer(answers[j][0])), answers[i][1], answers[j][1])
        for i, j in rank([score for _, score in answers])
    ]


def split_off_response(turns: list[Turn]) -> Example:
    """The example in a whole conversation: what follows the user's last turn is learned."""
    n_prompt = max((i + 1 for i, turn in enumerate(turns) if turn["role"] == "user"), default=0)
    if 0 < n_prompt == len(turns):
        raise Unusable("unanswered")
    return Example(turns[:n_prompt], turns[n_prompt:])


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
