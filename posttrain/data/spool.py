"""Stores rows on disk while they are checked, so that memory does not grow with their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from posttrain.data.rows import EXTRA_KEYS, without_nulls

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

BATCH_ROWS = 1000
"""Number of rows that are Python objects at the same time."""


class Spool:
    """A file of rows that is written once, in order, and can then be read repeatedly."""

    def __init__(self, schema: pa.Schema, file: Path) -> None:
        self.schema = schema
        self.n_rows = 0
        self._file = file
        self._writer = pa.ipc.new_file(str(file), schema)
        self._pending: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self._pending.append(row)
        self.n_rows += 1
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._pending, self.schema))
        self._pending = []

    def finish(self) -> None:
        """Finish writing, so that rows can be read."""
        self._flush()
        self._writer.close()
        self._reader = pa.ipc.open_file(pa.memory_map(str(self._file)))
        self._batch = lru_cache(maxsize=256)(self._reader.get_batch)

    def row(self, i: int, columns: Sequence[str]) -> dict[str, Any]:
        """Return some columns of the row at an index."""
        values: dict[str, Any] = (
            self._batch(i // BATCH_ROWS).slice(i % BATCH_ROWS, 1).select(list(columns)).to_pylist()[0]
        )
        return values

    def release(self) -> None:
        """Release the memory map. Rows cannot be read by index afterwards."""
        del self._reader, self._batch

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, `BATCH_ROWS` at a time."""
        # Not through the memory map, which would count as memory of this process.
        with pa.OSFile(str(self._file)) as file:
            reader = pa.ipc.open_file(file)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)


class SplitFiles:
    """One file of rows per split. The result is memory-mapped, not read."""

    def __init__(self, schema: pa.Schema, names: Sequence[str], folder: Path) -> None:
        self._schema = schema
        self._files = {name: folder / f"{name}.arrow" for name in names}
        self._writers = {name: pa.ipc.new_stream(str(file), schema) for name, file in self._files.items()}

    def write(self, batch: pa.RecordBatch, masks: Mapping[str, Sequence[bool]]) -> None:
        """Write the rows of a batch to the file of their split.

        Args:
            batch: some rows.
            masks: for each split, which of the rows belong to it.
        """
        for name, mask in masks.items():
            if any(mask):
                self._writers[name].write_batch(batch.filter(pa.array(mask, pa.bool_())))

    def tables(self) -> dict[str, pa.Table]:
        """Return the rows of each split. They stay valid after the files are deleted, because their pages stay mapped."""
        tables = {}
        for name, writer in self._writers.items():
            writer.close()
            tables[name] = pa.ipc.open_stream(pa.memory_map(str(self._files[name]))).read_all()
        return tables


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
