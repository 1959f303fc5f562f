"""Reads the rows of one source: its layout, its labels, and the checks of each row on its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic

from posttrain.config import DataSection, Source
from posttrain.data.checks import Unusable, check_row, find_bad_characters, fix_characters
from posttrain.data.formats import check_columns, find_layout, prepare, read_rows, rename
from posttrain.data.formats.fields import Fields
from posttrain.data.formats.label_scale import Labels
from posttrain.data.formats.layout import Layout, Parsed, Values
from posttrain.data.formats.turns import as_tools
from posttrain.data.report import Tally
from posttrain.data.sources import DEMO, OpenSource, SourceRecord, count_rows
from posttrain.errors import UserError
from posttrain.progress import progress_bar

N_HEAD_ROWS = 64
"""Number of rows from which the layout of a source is detected."""


@dataclass(frozen=True)
class SourceReading(Generic[Parsed]):
    """A source that is read, and how."""

    source: Source
    opened: OpenSource
    layouts: dict[str, Layout[Parsed]]
    """Those that the source may have."""
    train_only: bool = False
    """Read the training split only."""

    def records(self) -> Iterator[SourceRecord]:
        """Yield the rows that are read."""
        return (record for record in self.opened.read() if record.split == "train" or not self.train_only)


def read_source(
    reading: SourceReading[Parsed], data: DataSection, tally: Tally
) -> Iterator[tuple[SourceRecord, Values, Parsed]]:
    """Yield each usable row of a source: its record, its values under our names, and the parsed pair or example.

    The source, its unusable rows, and what nothing reads are counted in `tally`.

    Raises:
        UserError: the source has no rows or no known layout, or its labels have no clear meaning.
    """
    source, records = reading.source, reading.records()
    head = list(islice(records, N_HEAD_ROWS))
    name, layout = find_layout(source, _readable(source, head), reading.layouts)
    labels = _judge_labels(reading, name, layout)
    fields = Fields(source, name, layout.COLUMNS, is_demo=source.location == DEMO)
    about = {"revision": reading.opened.revision, "digest": reading.opened.digest, "objects": reading.opened.objects}
    tally.begin_source(path=source.path, format=name, unread=fields.unread, **about)
    rows = (
        ((record, values), values)
        for record in chain(head, records)
        for values in [None if record.values is None else _values(record.values, source, layout, labels)]
    )
    with progress_bar(_count(reading), f"Reading {source.path}", " rows") as bar:
        for (record, values), found in read_rows(source, layout, rows):
            tally.read_row()
            bar.update()
            has_media = values is not None and fields.count(values)
            for item in found:
                tally.read()
                try:
                    usable = _kept(item, record, tally)
                    assert values is not None, "a row that cannot be parsed gave a pair"
                    usable = _kept(fields.add_context(usable, values, has_media), record, tally)
                    usable = _fix(usable, record, tally)
                    check_row(usable.prompt, list(usable[1:]), data.max_chars)
                    as_tools(values)
                except Unusable as unusable:
                    tally.drop(unusable.reason, record.where, record.values)
                else:
                    yield record, values, usable


def _readable(source: Source, head: list[SourceRecord]) -> list[Values]:
    """Return the first rows under our names.

    Raises:
        UserError: there are none, or columns that are set do not exist.
    """
    if not head:
        raise UserError(f"{source.path}: has no rows: correct the path")
    readable = [record.values for record in head if record.values is not None]
    if not readable:
        raise UserError(
            f"{source.path}: none of the first {len(head)} rows can be parsed, starting with {head[0].where}: the content must "
            "match the suffix, e.g. one JSON object per line for .jsonl"
        )
    check_columns(source, readable)
    return [rename(values, source.columns) for values in readable]


def _judge_labels(reading: SourceReading[Parsed], name: str, layout: Layout[Parsed]) -> tuple[str, Labels] | None:
    """Return the column of the labels and their meaning, if all labels of a source decide it.

    Raises:
        UserError: the labels have no clear meaning, or `labels` is set and the layout has a meaning of its own.
    """
    source, columns = reading.source, getattr(layout, "JUDGED", None)
    if columns is None:
        if source.labels:
            raise UserError(
                f"{source.path}: labels is set, but layout {name} has no labels to choose from: remove the setting"
            )
        return None
    column = source.columns.get(columns[0], columns[0])
    values = (record.values.get(column) for record in reading.records() if record.values is not None)
    return columns[0], Labels(source, columns, values)


def _values(values: Values, source: Source, layout: Layout[Any], labels: tuple[str, Labels] | None) -> Values:
    """Return a row under our names, as its layout parses it, with `first`, `second` or `tie` as its label."""
    row = prepare(layout, rename(values, source.columns))
    return row if labels is None else {**row, labels[0]: labels[1].read(row.get(labels[0]))}


def _count(reading: SourceReading[Any]) -> int | None:
    counts = count_rows(reading.source)
    if counts is None:
        return None
    return counts.get("train") if reading.train_only else sum(counts.values())


def _kept(found: Parsed | Unusable, record: SourceRecord, tally: Tally) -> Parsed:
    """Return a pair or example, also if it is unusable for a reason whose policy is `keep`.

    Raises:
        Unusable: it is not kept.
    """
    if not isinstance(found, Unusable):
        return found
    if found.usable is None or tally.policy(found.reason) != "keep":
        raise found
    tally.flag(found.reason, record.where, record.values)
    usable: Parsed = found.usable
    return usable


def _fix(parsed: Parsed, record: SourceRecord, tally: Tally) -> Parsed:
    """Apply the policies for bad characters to a parsed row and return it."""
    turns = [turn for part in parsed for turn in part]
    found = dict.fromkeys(name for turn in turns for name in find_bad_characters(turn["content"]))
    for name in found:
        policy = tally.policy(name)
        if policy == "fix":
            tally.fix(name, record.where, record.values)
            for turn in turns:
                turn["content"] = fix_characters(turn["content"], name)
        elif policy == "keep":
            tally.flag(name, record.where, record.values)
        else:
            raise Unusable(name)
    return parsed
