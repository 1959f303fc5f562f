"""Checks of single rows."""

from __future__ import annotations

import re
from typing import Any

from posttrain.config.check_policies import REASONS
from posttrain.data.rows import EXTRA_KEYS, Turn


class Unusable(Exception):
    """A row cannot be used, for one of `REASONS`."""

    def __init__(self, reason: str, usable: Any = None) -> None:
        """Create the exception.

        Args:
            reason: one of `REASONS`.
            usable: the pair or example that is used if the policy of the reason is `keep`.
        """
        super().__init__(f"{reason}: {REASONS[reason]}")
        self.reason = reason
        self.usable = usable


def check_row(prompt: list[Turn], responses: list[list[Turn]], max_chars: int) -> None:
    """Check that a prompt and its responses can be trained on.

    Args:
        prompt: turns up to and including the last turn of the user or of a tool.
        responses: one for an instruction; chosen and rejected for a pair.
        max_chars: maximum number of characters of the prompt and of each response.

    Raises:
        Unusable: with the first reason that applies.
    """
    parts = [prompt, *responses]
    for turn in (turn for part in parts for turn in part):
        if not turn["content"].strip() and not turn.get("tool_calls") and turn["role"] != "tool":
            raise Unusable("empty")
    if not all(parts):
        raise Unusable("empty")
    for response in responses:
        if not _in_order(prompt + response):
            raise Unusable("turn_order")
        if response[0]["role"] != "assistant":
            raise Unusable("turn_order")
        if response[-1]["role"] != "assistant":
            raise Unusable("unanswered")
        if len(response) > 1:
            raise Unusable("parts_early")
        if response[-1].get("weight") == 0:
            raise Unusable("not_trained")
    if any(sum(map(_n_characters, part)) > max_chars for part in parts):
        raise Unusable("overlong")
    if len(responses) == 2 and _stripped(responses[0]) == _stripped(responses[1]):
        raise Unusable("identical")


def _in_order(turns: list[Turn]) -> bool:
    """Return whether user and assistant alternate after an optional system message. Results of tools follow a call of tools."""
    roles = [turn["role"] for turn in turns]
    if roles[0] == "system":
        del roles[0]
    if roles == ["user", "assistant"]:  # the usual case
        return True
    if "tool" not in roles:
        return all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles))
    before = {"user": ("", "assistant"), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
    return all(last in before.get(role, ()) for last, role in zip(["", *roles], roles, strict=False))


def _n_characters(turn: Turn) -> int:
    n = len(turn["content"])
    return n + len(turn.get("reasoning_content") or "") + len(turn.get("tool_calls") or "") if len(turn) > 2 else n


_BROKEN = re.compile("[\ud800-\udfff\ufffd]")
# Unicode category Cc, except tab and line feed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def find_bad_characters(text: str) -> list[str]:
    """Return the checks that a text fails: `broken_encoding`, `control_characters`, both or none."""
    if text.isprintable():  # the usual case, and much faster than a search
        return ["broken_encoding"] if "\ufffd" in text else []
    return [name for name, pattern in _BAD_CHARACTERS.items() if pattern.search(text)]


def fix_characters(text: str, check: str) -> str:
    """Return the text without the characters that a check finds. Carriage returns become line feeds."""
    if check == "control_characters":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _BAD_CHARACTERS[check].sub("", text)


_BAD_CHARACTERS = {"broken_encoding": _BROKEN, "control_characters": _CONTROL}


def _stripped(turns: list[Turn]) -> list[tuple[str, ...]]:
    return [
        (turn["role"], turn["content"].strip(), *(map(str, map(turn.get, EXTRA_KEYS)) if len(turn) > 2 else ()))
        for turn in turns
    ]
