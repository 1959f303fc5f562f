"""Definitions for all rows: the names of splits, and a text that is the same for the same content."""

from __future__ import annotations

import json
from typing import Any

SPLITS = ("train", "validation", "test")

_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def canonical(value: Any) -> bytes:
    """Return JSON that is the same for the same content."""
    return _ENCODER.encode(value).encode()
