"""Stored turns as the messages of their source, so that tests can compare them."""

import json
from collections.abc import Iterable
from typing import Any

from posttrain.data.rows import Turn, without_nulls


def as_messages(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    """Return turns as messages: without unused keys, and with tool calls as lists."""
    messages = []
    for turn in turns:
        message = without_nulls(turn)
        message.pop("weight", None)
        if calls := message.get("tool_calls"):
            message["tool_calls"] = json.loads(calls)
        messages.append(message)
    return messages
