"""Rows on disk while they are checked, so that memory does not grow with their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

BATCH_ROWS = 1000
"""Rows that are held as Python objects at once."""


class Spool:
    """A file of rows that is written once, in order, and then read as often as needed."""

    def __init__(self, schema: pa.Schema, file: Path) -> None:
        self.schema = schema
        self.n_rows = 0
        self._file = file
        self._writer = pa.ipc.new_file(str(file), schema)
        self._pending: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Takes the next row."""
        self._pending.append(row)
        self.n_rows += 1
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._pending, self.schema))
        self._pending = []

    def finish(self) -> None:
        """Ends the writing; from here on there is only reading."""
        self._flush()
        self._writer.close()
        self._reader = pa.ipc.open_file(pa.memory_map(str(self._file)))
        self._batch = lru_cache(maxsize=256)(self._reader.get_batch)

    def row(self, i: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of the row at a position."""
        values: dict[str, Any] = (
            self._batch(i // BATCH_ROWS).slice(i % BATCH_ROWS, 1).select(list(columns)).to_pylist()[0]
        )
        return values

    def release(self) -> None:
        """Gives back the memory that rows were mapped into; there is no more reading."""
        del self._reader, self._batch

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in order, `BATCH_ROWS` at a time."""
        # Not the mapped file: all of it would count as memory of this process.
        with pa.OSFile(str(self._file)) as file:
            reader = pa.ipc.open_file(file)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)


class SplitFiles:
    """One file of rows for each split; what was written is mapped into memory, not read."""

    def __init__(self, schema: pa.Schema, names: Sequence[str], folder: Path) -> None:
        self._schema = schema
        self._files = {name: folder / f"{name}.arrow" for name in names}
        self._writers = {name: pa.ipc.new_stream(str(file), schema) for name, file in self._files.items()}

    def write(self, batch: pa.RecordBatch, masks: Mapping[str, Sequence[bool]]) -> None:
        """Takes the rows of a batch that belong to each split."""
        for name, mask in masks.items():
            if any(mask):
                self._writers[name].write_batch(batch.filter(pa.array(mask, pa.bool_())))

    def tables(self) -> dict[str, pa.Table]:
        """The rows of each split. They outlive the files, whose pages stay mapped."""
        tables = {}
        for name, writer in self._writers.items():
            writer.close()
            tables[name] = pa.ipc.open_stream(pa.memory_map(str(self._files[name]))).read_all()
        return tables
