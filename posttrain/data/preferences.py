"""Checked, split and counted: the preference pairs and instructions that training works on, and the report on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from posttrain.config import DataSection, Source
from posttrain.data import demo
from posttrain.data.checks import Turn, Unusable, check_row
from posttrain.data.formats import INSTRUCTION_LAYOUTS, PREFERENCE_LAYOUTS, check_columns, find_layout, rename
from posttrain.data.formats.layout import Example, Layout, Pair, Parsed, Values
from posttrain.data.report import DataReport, SourceReport, Tally
from posttrain.data.sources import DEMO, OpenSource, Record, open_source
from posttrain.data.splits import SPLITS, choose_split, find_leaks, prompt_key
from posttrain.errors import UserError

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("prompt", _TURNS),
        ("chosen", _TURNS),
        ("rejected", _TURNS),
        ("true_margin", pa.float64()),
    ]
)
"""A preference pair. `true_margin`: hidden reward of chosen less that of rejected, known for the demo only."""
EXAMPLE_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("prompt", _TURNS), ("completion", _TURNS)])
"""An instruction and its response."""

N_HEAD_ROWS = 64
"""Rows from which a source's layout is recognised."""
BATCH_ROWS = 1000
"""Rows that are held as Python objects at once."""


@dataclass(frozen=True)
class Preferences:
    """Preference pairs (`PAIR_SCHEMA`) in three splits that share no prompt."""

    train: Dataset
    validation: Dataset
    test: Dataset

    def splits(self) -> dict[str, Dataset]:
        """The splits by name."""
        return {name: getattr(self, name) for name in SPLITS}

    @property
    def n_pairs(self) -> int:
        """Pairs in all splits."""
        return sum(len(rows) for rows in self.splits().values())

    @cached_property
    def digest(self) -> str:
        """sha256 over every row in order and the names of the splits, the same on any machine."""
        return _digest(self.splits())

    def save(self, folder: Path) -> None:
        """Writes each split as `<split>.parquet`."""
        _save(self.splits(), PAIR_SCHEMA, folder)

    @classmethod
    def load(cls, folder: Path) -> Preferences:
        """What `save` wrote."""
        return cls(**{name: _load(folder / f"{name}.parquet") for name in SPLITS})


@dataclass(frozen=True)
class Instructions:
    """Instructions with their responses (`EXAMPLE_SCHEMA`)."""

    rows: Dataset

    @cached_property
    def digest(self) -> str:
        """sha256 over every row in order, the same on any machine."""
        return _digest({"rows": self.rows})

    def save(self, folder: Path) -> None:
        """Writes `rows.parquet`."""
        _save({"rows": self.rows}, EXAMPLE_SCHEMA, folder)

    @classmethod
    def load(cls, folder: Path) -> Instructions:
        """What `save` wrote."""
        return cls(_load(folder / "rows.parquet"))


def load_preferences(data: DataSection) -> tuple[Preferences, DataReport]:
    """The preference pairs of all sources, and the report on them.

    Raises:
        UserError: a source is missing or has no known layout, too many rows cannot be used, or a split is empty.
    """
    tally, rows = Tally(), _Rows(PAIR_SCHEMA)
    keys, splits, responses = list[bytes](), list[str](), list[tuple[bytes, bytes]]()
    for source in data.sources:
        opened = open_source(source)
        for record, values, pair in _read(source, opened, PREFERENCE_LAYOUTS, data.max_chars, tally):
            key = prompt_key(pair.prompt)
            split = record.split
            if split == "train":
                chosen_split = choose_split(key, data.seed, data.test_size, data.validation_size)
                split = "train" if chosen_split in opened.splits else chosen_split
            keys.append(key)
            splits.append(split)
            responses.append((_turns_key(pair.chosen), _turns_key(pair.rejected)))
            true_margin = values["true_margin"] if source.path == DEMO else None
            rows.add(record, {"id": _id(pair), **pair._asdict(), "true_margin": true_margin})

    reasons = find_leaks(keys, splits)
    _mark_repeats(keys, responses, reasons)
    _assert_disjoint(keys, splits, reasons)
    preferences = Preferences(**rows.sort(SPLITS, splits, reasons, tally))
    tally.check_share(data.max_drop_share)
    n_rows = {split: len(dataset) for split, dataset in preferences.splits().items()}
    _check_filled(n_rows, data)
    margins = [margin for margin in preferences.test["true_margin"] if margin is not None]
    return preferences, tally.report(n_rows, preferences.digest, demo.ceiling(margins) if margins else None)


def load_instructions(source: Source, held_out: Preferences, data: DataSection) -> tuple[Instructions, DataReport]:
    """The training rows of an instruction set, and the report on them.

    Args:
        source: the instruction set; only its training split is read.
        held_out: preferences whose validation and test prompts must not be trained on.
        data: its `max_chars` and `max_drop_share` hold here too.

    Raises:
        UserError: the source is missing or has no known layout, or too many rows cannot be used.
    """
    tally, rows = Tally(), _Rows(EXAMPLE_SCHEMA)
    prompts_held_out = {
        prompt_key(prompt) for split in (held_out.validation, held_out.test) for prompt in split["prompt"]
    }
    reasons, seen = list[str | None](), set[tuple[bytes, bytes]]()
    for record, _, example in _read(
        source, open_source(source), INSTRUCTION_LAYOUTS, data.max_chars, tally, train_only=True
    ):
        key = prompt_key(example.prompt)
        identity = (key, _turns_key(example.completion))
        reasons.append("held_out" if key in prompts_held_out else "duplicate" if identity in seen else None)
        seen.add(identity)
        rows.add(record, {"id": _id(example), **example._asdict()})

    instructions = Instructions(rows.sort(("train",), ["train"] * len(reasons), reasons, tally)["train"])
    tally.check_share(data.max_drop_share)
    if not len(instructions.rows):
        raise UserError(f"{source.path}: no row is left to train on, of {tally.n_read}:\n{tally.summary()}")
    return instructions, tally.report({"train": len(instructions.rows)}, instructions.digest)


def load_pairs(source: Source, trained_on: set[bytes], data: DataSection) -> tuple[Dataset, DataReport]:
    """All pairs of a source, of whatever split, to judge by; and the report on them.

    Args:
        trained_on: keys of prompts (`prompt_key`) whose pairs are dropped.
        data: its `max_chars` and `max_drop_share` hold here too.

    Raises:
        UserError: the source is missing or has no known layout, too many rows cannot be used, or none is left.
    """
    tally, rows = Tally(), _Rows(PAIR_SCHEMA)
    keys, responses = list[bytes](), list[tuple[bytes, bytes]]()
    opened = open_source(source)
    for record, _, pair in _read(source, opened, PREFERENCE_LAYOUTS, data.max_chars, tally):
        keys.append(prompt_key(pair.prompt))
        responses.append((_turns_key(pair.chosen), _turns_key(pair.rejected)))
        rows.add(record, {"id": _id(pair), **pair._asdict(), "true_margin": None})
    reasons: list[str | None] = ["trained_on" if key in trained_on else None for key in keys]
    _mark_repeats(keys, responses, reasons)
    pairs = rows.sort(("test",), ["test"] * len(reasons), reasons, tally)["test"]
    if not len(pairs):
        raise UserError(f"{source.path}: no pair is left to judge by, of {tally.n_read}:\n{tally.summary()}")
    tally.check_share(data.max_drop_share)
    return pairs, tally.report({"test": len(pairs)}, _digest({"test": pairs}))


def _read(
    source: Source,
    opened: OpenSource,
    layouts: dict[str, Layout[Parsed]],
    max_chars: int,
    tally: Tally,
    train_only: bool = False,
) -> Iterator[tuple[Record, Values, Parsed]]:
    """Each usable row of a source: its record, its renamed values, and what was found in them.

    The source and its unusable rows are counted in `tally`.
    """
    records = (record for record in opened.read() if record.split == "train" or not train_only)
    head = list(islice(records, N_HEAD_ROWS))
    if not head:
        raise UserError(f"{source.path}: is empty: nothing can be learned from it; correct the path")
    readable = [record.values for record in head if record.values is not None]
    if not readable:
        raise UserError(
            f"{source.path}: not one of the first {len(head)} rows can be read, beginning with {head[0].where}: "
            "it must hold JSON objects, a line each, or what its suffix says"
        )
    check_columns(source, readable)
    name, layout = find_layout(source, [rename(values, source.columns) for values in readable], layouts)
    n_read = 0
    for record in chain(head, records):
        n_read += 1
        tally.n_read += 1
        try:
            if record.values is None:
                raise Unusable("unparsable")
            values = rename(record.values, source.columns)
            parsed = layout.parse(values)
            check_row(parsed.prompt, list(parsed[1:]), max_chars)
        except Unusable as unusable:
            tally.drop(unusable.reason, record.where, record.values)
        else:
            yield record, values, parsed
    tally.sources.append(
        SourceReport(path=source.path, format=name, revision=opened.revision, digest=opened.digest, n_read=n_read)
    )


class _Rows:
    """Usable rows on their way into Arrow, where their text is held once."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._pending: list[dict[str, Any]] = []
        self._where: list[str] = []

    def add(self, record: Record, row: dict[str, Any]) -> None:
        """Takes the next row."""
        self._where.append(record.where)
        self._pending.append({"source": record.source, **row})
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._batches.append(pa.RecordBatch.from_pylist(self._pending, self._schema))
        self._pending = []

    def sort(
        self, names: Sequence[str], splits: Sequence[str], reasons: Sequence[str | None], tally: Tally
    ) -> dict[str, Dataset]:
        """The rows of each split, which this object lets go of as they are sorted.

        Args:
            names: of the splits.
            splits: the split of each row.
            reasons: why each row must go, and is to be counted as dropped; None where it stays.
        """
        self._flush()
        sorted_batches: dict[str, list[pa.RecordBatch]] = {name: [] for name in names}
        start = 0
        while self._batches:
            batch = self._batches.pop(0)
            rows = range(start, start + batch.num_rows)
            for i in rows:
                if (reason := reasons[i]) is not None:
                    tally.drop(reason, self._where[i], batch.slice(i - start, 1).select(["prompt"]).to_pylist()[0])
            for name, batches in sorted_batches.items():
                mask = pa.array([splits[i] == name and reasons[i] is None for i in rows], pa.bool_())
                batches.append(batch.filter(mask))
            start += batch.num_rows
        return {
            name: _dataset(pa.Table.from_batches(batches, self._schema)) for name, batches in sorted_batches.items()
        }


def _mark_repeats(keys: list[bytes], responses: list[tuple[bytes, bytes]], reasons: list[str | None]) -> None:
    """Gives rows that stay so far a reason to go, where they contradict or repeat another one that stays."""
    staying = [i for i, reason in enumerate(reasons) if reason is None]
    pairs = {(keys[i], *responses[i]) for i in staying}
    seen = set()
    for i in staying:
        key, (chosen, rejected) = keys[i], responses[i]
        if (key, rejected, chosen) in pairs:
            reasons[i] = "conflicting"
        elif (key, chosen, rejected) in seen:
            reasons[i] = "duplicate"
        seen.add((key, chosen, rejected))


def _assert_disjoint(keys: list[bytes], splits: list[str], reasons: list[str | None]) -> None:
    kept = {(key, split) for key, split, reason in zip(keys, splits, reasons, strict=True) if reason is None}
    assert len(kept) == len({key for key, _ in kept}), "a prompt is in two splits"


def _check_filled(n_rows: dict[str, int], data: DataSection) -> None:
    n_kept = sum(n_rows.values())
    if not n_rows["train"]:
        raise UserError(f"data: no pair is left to train on, of {n_kept} usable ones: add rows, or lower test_size")
    if not n_rows["test"]:
        raise UserError(
            f"data: no pair is left for the test, of {n_kept} usable ones, so nothing could be said about the model: "
            f"add rows, raise data.test_size ({data.test_size:g}), or give a source with a test split"
        )


def _canonical(value: Any) -> bytes:
    """JSON that is the same for the same content."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _id(parsed: Pair | Example) -> str:
    return hashlib.sha256(_canonical(list(parsed))).hexdigest()[:16]


def _turns_key(turns: list[Turn]) -> bytes:
    return hashlib.sha256(_canonical(turns)).digest()


def _digest(splits: dict[str, Dataset]) -> str:
    digest = hashlib.sha256()
    for name, dataset in splits.items():
        digest.update(f"{name}\n".encode())
        for batch in dataset.with_format("arrow").iter(BATCH_ROWS):
            for row in batch.to_pylist():
                digest.update(_canonical(row) + b"\n")
    return digest.hexdigest()


def _save(splits: dict[str, Dataset], schema: pa.Schema, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, dataset in splits.items():
        pq.write_table(dataset.with_format("arrow")[:].cast(schema), folder / f"{name}.parquet")


def _load(file: Path) -> Dataset:
    return _dataset(pq.read_table(file))


def _dataset(table: pa.Table) -> Dataset:
    """The table as a dataset, named by its ids: left to itself, `datasets` would copy all text to find a name."""
    name = hashlib.sha256(_canonical(table["id"].to_pylist())).hexdigest()[:16]
    return Dataset(table, fingerprint=name)
