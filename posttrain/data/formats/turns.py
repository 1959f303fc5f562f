"""Turns, tool calls and tools in the values of a row."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from posttrain.data.checks import Unusable
from posttrain.data.rows import Turn

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response", "tool_result"), "tool"),
}
"""Our role by the name that datasets use."""

_CALL_ROLES = ("function_call", "tool_call", "tool_calls")
"""Roles of ShareGPT messages whose text is JSON of the tool calls of the assistant."""

_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys for the thoughts of a message, the first of which that holds text is used."""

MESSAGE_KEYS = frozenset(
    [
        *("role", "content", "from", "value", *_THOUGHTS, "tool_calls", "function_call", "name", "tool_call_id"),
        *("weight", "train", "training"),
    ]
)
"""Keys of a message that are read."""


def as_text(value: Any) -> str:
    """Return the value, which must be a string."""
    if not isinstance(value, str):
        raise Unusable("not_text")
    return value


def as_turns(value: Any, role: str) -> list[Turn]:
    """Return the turns in a value: those of a list of messages, of a single message, or one turn of `role` for plain text."""
    if isinstance(value, str):
        messages = serialised_messages(value)
        return [{"role": role, "content": value}] if messages is None else list(map(_as_turn, messages))
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list) and not is_message(value):
        if value.get("tools"):  # only the layout of OpenAI passes them on
            raise Unusable("unread_content")
        value = value["messages"]
    if isinstance(value, Mapping):
        return [_as_turn(value)]
    if not isinstance(value, list):
        raise Unusable("not_text")
    return list(map(_as_turn, value))


def serialised_messages(value: str) -> list[Any] | None:
    """Return the messages in a text that is JSON or Python source of messages; None for any other text.

    Raises:
        Unusable: the text begins like messages and cannot be parsed.
    """
    if value[:1] not in _STARTS or not is_serialised(value):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        messages = found if isinstance(found, list) else [found]
        return messages if messages and all(map(is_message, messages)) else None
    raise Unusable("serialised_messages")


def is_serialised(value: Any) -> bool:
    """Return whether a value is a text that begins like JSON or Python source of messages with roles that are known."""
    return isinstance(value, str) and value.lstrip()[:1] in ("[", "{", "a") and _SERIALISED.match(value) is not None


_STARTS = frozenset("[{a \t\r\n")
"""First characters of such texts."""
_SERIALISED = re.compile(
    r"""\s*(?:\[?array\()?\[?\s*\{(?=\s*["'](?:role|from|content|value)["']\s*:).*?["'](?:role|from)["']\s*:\s*"""
    rf"""["'](?:{"|".join([*_ROLES, *_CALL_ROLES])})["']""",
    re.DOTALL,
)
_SPEAKER = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Return whether a text is a transcript that starts with the human and has a turn of the assistant."""
    return text.lstrip()[:6] == "Human:" and "\n\nAssistant:" in text


def transcript_turns(transcript: str) -> list[Turn]:
    """Return the turns of a transcript of the form `\\n\\nHuman: ...\\n\\nAssistant: ...`, without white space around them."""
    before, *rest = _SPEAKER.split(transcript)
    if before.strip() or not rest:
        raise Unusable("unparsable")
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": text.strip()}
        for speaker, text in zip(rest[::2], rest[1::2], strict=True)
    ]


def is_message(value: Any) -> bool:
    """Return whether a value is a message: a mapping with a role."""
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def is_conversation(value: Any) -> bool:
    """Return whether a value is a list of messages, judged by its first item, or a text that begins like one."""
    if isinstance(value, str):
        return is_serialised(value)
    return isinstance(value, list) and bool(value) and is_message(value[0])


def _as_turn(message: Any) -> Turn:
    """Return a turn from a message in the format of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`)."""
    if not isinstance(message, Mapping):
        raise Unusable("not_text")
    openai = message.get("role") is not None
    role, content = (message.get(name) for name in (("role", "content") if openai else ("from", "value")))
    if not isinstance(role, str):
        raise Unusable("unknown_role")
    role = role.lower()
    if role in _CALL_ROLES:
        return {"role": "assistant", "content": "", "tool_calls": _as_calls(content)}
    if role not in _ROLES:
        raise Unusable("unknown_role")
    if len(message) == 2:
        return {"role": _ROLES[role], "content": _as_content(content)}
    return _with_extras(_ROLES[role], content, message)


def _with_extras(role: str, content: Any, message: Mapping[str, Any]) -> Turn:
    """Return the turn of a message that has more keys than its role and content."""
    calls = message.get("tool_calls") or message.get("function_call")
    turn: Turn = {"role": role, "content": "" if content is None and calls else _as_content(content)}
    if thoughts := next((text for key in _THOUGHTS if (text := message.get(key))), None):
        turn["reasoning_content"] = as_text(thoughts)
    if calls:
        turn["tool_calls"] = _as_calls(calls)
    if (name := message.get("name")) and role != "system":
        turn["name"] = as_text(name)
    if call_id := message.get("tool_call_id"):
        turn["tool_call_id"] = as_text(call_id)
    if any(message.get(key) in (0, False) and message.get(key) is not None for key in ("weight", "train", "training")):
        turn["weight"] = 0.0
    return turn


def _as_content(content: Any) -> str:
    """Return the text of a string or of OpenAI's list of text parts."""
    if not isinstance(content, list):
        return as_text(content)
    texts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type", "text") != "text":
            raise Unusable("unread_content")
        texts.append(as_text(part.get("text") if isinstance(part, Mapping) else part))
    return "".join(texts)


def _as_calls(calls: Any) -> str:
    """Return tool calls as JSON of a list: a list or a single call, given as values or as JSON."""
    calls = _parsed(calls, "bad_tool_calls")
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list) or not calls or not all(isinstance(call, Mapping) for call in calls):
        raise Unusable("bad_tool_calls")
    return _json(calls, "bad_tool_calls")


def as_tools(row: Mapping[str, Any]) -> str | None:
    """Return the tools in a row's column `tools` as JSON, with their keys in the order of the source; None if it has none."""
    tools = row.get("tools")
    if tools is None:
        return None
    tools = _parsed(tools, "bad_tools") if not isinstance(tools, str) or tools.strip() else None
    if not tools and tools in (None, []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Unusable("bad_tools")
    return _json(tools, "bad_tools")


def _parsed(value: Any, reason: str) -> Any:
    """Return a value, parsed if it is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Unusable(reason) from None


def _json(value: Any, reason: str) -> str:
    """Return a value as JSON. Keys with null are removed: Arrow adds them for keys that only some items of a list have."""
    try:
        text = json.dumps(_without_nulls(value), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        raise Unusable(reason) from None
    return text


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
