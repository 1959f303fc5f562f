"""Messages as chat templates take them, and the thoughts in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None

OPEN, CLOSE = "<think>", "</think>"
"""Marks around the thoughts of an answer, if it has them in its text."""


def split_thoughts(content: str) -> tuple[str, str]:
    """Return the thoughts at the beginning of an answer's text, and the text after them. Without thoughts the first is empty."""
    before, mark, after = content.partition(CLOSE)
    head = before.lstrip()
    if not mark or (OPEN in head and not head.startswith(OPEN)):
        return "", content
    return head.removeprefix(OPEN).strip("\n"), after.lstrip("\n")


def join_thoughts(thoughts: str, content: str) -> str:
    """Return an answer's text with the thoughts in front of it."""
    return f"{OPEN}\n{thoughts.strip(chr(10))}\n{CLOSE}\n\n{content}"


def thoughts_of(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return the thoughts of an answer, from their own key or from its text, and its text without them."""
    content = message["content"] or ""
    if message.get("reasoning_content"):
        return str(message["reasoning_content"]), content
    return split_thoughts(content)


def as_calls(calls: Any, *, as_text: bool) -> list[dict[str, Any]]:
    """Return tool calls with their arguments as objects, or as JSON text, whichever the template reads.

    Args:
        calls: a list of calls as in OpenAI's format, or JSON of one.
    """
    found = []
    for call in json.loads(calls) if isinstance(calls, str) else calls:
        inner = call["function"] if isinstance(call.get("function"), dict) else call
        inner = {**inner, "arguments": _arguments(inner.get("arguments"), as_text)} if "arguments" in inner else inner
        found.append({**call, "function": inner} if "function" in call else inner)
    return found


def _arguments(value: Any, as_text: bool) -> Any:
    if as_text:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """Return all texts of a message that a template can show."""
    return [message[key] for key in ("content", "reasoning_content", "tool_calls", "name") if message.get(key)]
