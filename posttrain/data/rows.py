"""Definitions for all rows: messages, the names of splits, and a text that is the same for the same content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Required, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
TURNS = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            *((name, pa.float64() if name == "weight" else pa.string()) for name in EXTRA_KEYS),
        ]
    )
)
"""Type of a column with a list of turns."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def canonical(value: Any) -> bytes:
    """Return JSON that is the same for the same content."""
    return _ENCODER.encode(value).encode()


def without_nulls(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn without the keys that it does not use."""
    return {name: value for name, value in turn.items() if value is not None}


def as_messages(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    """Return turns as chat templates take them: without unused keys, and with tool calls as lists."""
    messages = []
    for turn in turns:
        message = without_nulls(turn)
        message.pop("weight", None)
        if calls := message.get("tool_calls"):
            message["tool_calls"] = json.loads(calls)
        messages.append(message)
    return messages


def lean_rows(batch: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as Python objects, whose turns have only the keys that they use."""
    columns = {name: _lean(batch.column(name)) for name in batch.schema.names}
    rows: list[dict[str, Any]] = pa.table(columns).to_pylist()
    for name in (name for name, column in columns.items() if _has_extras(column.type)):
        for row in rows:
            row[name] = list(map(without_nulls, row[name]))
    return rows


def _has_extras(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and pa.types.is_struct(kind.value_type) and kind.value_type.num_fields > 2)


def _lean(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return a column of turns without the keys that none of them uses. As Python objects, unused keys take half the time."""
    if not _has_extras(column.type):
        return column
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    turns = column.flatten()
    fields = {field.name: turns.field(field.name) for field in column.type.value_type}
    used = {name: values for name, values in fields.items() if values.null_count < len(values) or name == "role"}
    ends = np.cumsum(np.concatenate([[0], np.asarray(pc.list_value_length(column))]), dtype=np.int32)
    return pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(list(used.values()), names=list(used)))
