"""Stores rows on disk while they are checked, so that memory does not grow with their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

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
