"""The checked preference pairs and instructions: schemas, digests and storage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.data.rows import SPLITS, canonical
from posttrain.data.spool import TURNS, lean_rows

PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("prompt", TURNS),
        ("chosen", TURNS),
        ("rejected", TURNS),
        ("tools", pa.string()),
        ("true_margin", pa.float64()),
    ]
)
"""A preference pair. `tools` is JSON of the tools for the chat template, or null. `true_margin` is the hidden reward of chosen
minus that of rejected and known for the demo only."""
EXAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("prompt", TURNS),
        ("completion", TURNS),
        ("tools", pa.string()),
    ]
)
"""An instruction and its response."""

BATCH_ROWS = 1000
"""Rows that are read at once."""
SAVED_ROWS = 50_000
"""Number of rows to write at once."""


@dataclass(frozen=True)
class Preferences:
    """Preference pairs (`PAIR_SCHEMA`) in three splits without common prompts."""

    train: Dataset
    validation: Dataset
    test: Dataset

    def splits(self) -> dict[str, Dataset]:
        """Return the splits by name."""
        return {name: getattr(self, name) for name in SPLITS}

    @property
    def n_pairs(self) -> int:
        """Number of pairs in all splits."""
        return sum(len(rows) for rows in self.splits().values())

    @cached_property
    def digest(self) -> str:
        """sha256 of all rows in order and the names of the splits; independent of the machine."""
        return _digest(self.splits())

    def save(self, folder: Path) -> None:
        """Write each split as `<split>.parquet`."""
        _save(self.splits(), PAIR_SCHEMA, folder)

    @classmethod
    def load(cls, folder: Path) -> Preferences:
        """Load what `save` wrote."""
        return cls(**{name: _load(folder / f"{name}.parquet") for name in SPLITS})


@dataclass(frozen=True)
class Instructions:
    """Instructions with their responses (`EXAMPLE_SCHEMA`)."""

    rows: Dataset

    @cached_property
    def digest(self) -> str:
        """sha256 of all rows in order; independent of the machine."""
        return _digest({"rows": self.rows})

    def save(self, folder: Path) -> None:
        """Write `rows.parquet`."""
        _save({"rows": self.rows}, EXAMPLE_SCHEMA, folder)

    @classmethod
    def load(cls, folder: Path) -> Instructions:
        """Load what `save` wrote."""
        return cls(_load(folder / "rows.parquet"))


def _digest(splits: dict[str, Dataset]) -> str:
    digest = hashlib.sha256()
    for name, dataset in splits.items():
        digest.update(f"{name}\n".encode())
        for batch in dataset.with_format("arrow").iter(BATCH_ROWS):
            for row in lean_rows(batch):
                digest.update(canonical(row) + b"\n")
    return digest.hexdigest()


def _save(splits: dict[str, Dataset], schema: pa.Schema, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, dataset in splits.items():
        with pq.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            for table in dataset.with_format("arrow").iter(SAVED_ROWS):
                writer.write_table(table.cast(schema))


def _load(file: Path) -> Dataset:
    return _dataset(pq.read_table(file))


def _dataset(table: pa.Table) -> Dataset:
    """Return the table as a dataset whose fingerprint is a hash of its ids. By default `datasets` would copy and hash all text."""
    name = hashlib.sha256(canonical(table["id"].to_pylist())).hexdigest()[:16]
    return Dataset(table, fingerprint=name)
