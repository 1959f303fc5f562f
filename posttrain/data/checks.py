"""What a row can have wrong with it, and what may be done about it: every fault is counted and shown by example."""

from __future__ import annotations

import re

from posttrain.config.check_policies import REASONS

Turn = dict[str, str]
"""One message: `role` (system, user or assistant) and `content`."""


class Unusable(Exception):
    """A row that cannot be used, for one of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: {REASONS[reason]}")
        self.reason = reason


def check_row(prompt: list[Turn], responses: list[list[Turn]], max_chars: int) -> None:
    """Nothing, if the prompt and each response to it can be trained on.

    Args:
        prompt: turns up to and including the user's last one.
        responses: one for an instruction; chosen and rejected for a pair.
        max_chars: the most characters that the prompt, or one response, may have.

    Raises:
        Unusable: the first reason that applies.
    """
    parts = [prompt, *responses]
    for turn in (turn for part in parts for turn in part):
        if not turn["content"].strip():
            raise Unusable("empty")
    if not all(parts):
        raise Unusable("empty")
    for response in responses:
        roles = [turn["role"] for turn in prompt + response]
        if roles[0] == "system":
            del roles[0]
        if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
            raise Unusable("turn_order")
        if response[0]["role"] != "assistant":
            raise Unusable("turn_order")
        if response[-1]["role"] != "assistant":
            raise Unusable("unanswered")
        if len(response) > 1:
            raise Unusable("parts_early")
    if any(sum(len(turn["content"]) for turn in part) > max_chars for part in parts):
        raise Unusable("overlong")
    if len(responses) == 2 and _stripped(responses[0]) == _stripped(responses[1]):
        raise Unusable("identical")


_BROKEN = re.compile("[\ud800-\udfff\ufffd]")
# All of Unicode's category Cc but tab and line feed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def find_bad_characters(text: str) -> list[str]:
    """Which checks a text fails: `broken_encoding`, `control_characters`, both or none."""
    if text.isprintable():  # much faster than to search, and mostly so
        return ["broken_encoding"] if "\ufffd" in text else []
    return [name for name, pattern in _BAD_CHARACTERS.items() if pattern.search(text)]


def fix_characters(text: str, check: str) -> str:
    """Text without the characters that a check finds; a line break of any kind becomes a line feed."""
    if check == "control_characters":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _BAD_CHARACTERS[check].sub("", text)


_BAD_CHARACTERS = {"broken_encoding": _BROKEN, "control_characters": _CONTROL}


def _stripped(turns: list[Turn]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"].strip()) for turn in turns]
