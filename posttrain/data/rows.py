"""Definitions for all rows: messages, the names of splits, and a text that is the same for the same content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Required, TypedDict

SPLITS = ("train", "validation", "test")


class Turn(TypedDict, total=False):
    """One message. The keys after `content` are missing or None in most messages."""

    role: Required[str]
    """system, user, assistant or tool."""
    content: Required[str]
    """Text; empty if the message only calls tools."""
    reasoning_content: str | None
    """Thoughts before the content."""
    tool_calls: str | None
    """JSON of the list of tool calls, with the keys in the order of the source."""
    name: str | None
    """Name of the speaker, or of the tool whose result this is."""
    tool_call_id: str | None
    """Id of the call whose result this is."""
    weight: float | None
    """0: the author of the data excludes this message from training. It is no part of the message itself."""


EXTRA_KEYS = ("reasoning_content", "tool_calls", "name", "tool_call_id", "weight")
"""The optional keys of a `Turn`."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def canonical(value: Any) -> bytes:
    """Return JSON that is the same for the same content."""
    return _ENCODER.encode(value).encode()


def without_nulls(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn without the keys that it does not use."""
    return {name: value for name, value in turn.items() if value is not None}
