"""Loads the sources of a config as checked and split preferences or instructions, with a report that covers every row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic

from datasets import Dataset, concatenate_datasets

from posttrain.config import DataSection, Source
from posttrain.data.checks import Unusable, check_row, find_bad_characters, fix_characters
from posttrain.data.contamination import EvaluationPrompts
from posttrain.data.demo import pairs as demo
from posttrain.data.formats import (
    INSTRUCTION_LAYOUTS,
    PREFERENCE_LAYOUTS,
    check_columns,
    find_layout,
    read_rows,
    rename,
)
from posttrain.data.formats.layout import Example, Layout, Pair, Parsed, Values
from posttrain.data.formats.turns import as_tools
from posttrain.data.mixture import find_left_out
from posttrain.data.pool import LEAKS, NEAR_LEAKS, TEST, Pool
from posttrain.data.preferences import EXAMPLE_SCHEMA, PAIR_SCHEMA, Instructions, Preferences, _dataset, _digest
from posttrain.data.profile import agreement
from posttrain.data.report import DataReport, Tally
from posttrain.data.rows import canonical
from posttrain.data.sources import DEMO, OpenSource, SourceRecord, count_rows, open_source
from posttrain.data.splits import choose_split, prompt_key
from posttrain.errors import UserError
from posttrain.progress import progress_bar

N_HEAD_ROWS = 64
"""Number of rows from which the layout of a source is detected."""


def load_preferences(data: DataSection) -> tuple[Preferences, DataReport]:
    """Load the preference pairs of all sources and return them with their report.

    Raises:
        UserError: a source is missing or has no known layout, too many rows cannot be used, a row fails a check with policy
            `fail`, or a split is empty.
    """
    tally = Tally(data.checks)
    evaluation_prompts = EvaluationPrompts(data.contamination) if data.contamination else None
    with _scratch_folder() as folder:
        pool = Pool(PAIR_SCHEMA, ("prompt", "chosen", "rejected"), folder, tally)
        for source in data.sources:
            opened = open_source(source)
            for record, values, pair in _read(_Reading(source, opened, PREFERENCE_LAYOUTS), data, tally):
                split = record.split
                if split == "train":
                    chosen_split = choose_split(
                        prompt_key(pair.prompt), data.seed, data.test_size, data.validation_size
                    )
                    split = "train" if chosen_split in opened.splits else chosen_split
                true_margin = values["true_margin"] if source.location == DEMO else None
                row = {**_row(record, pair, values), "true_margin": true_margin}
                pool.add({**row, "annotators_agree": agreement(values)}, split)
        pool.finish()
        pool.mark_leaks(LEAKS, NEAR_LEAKS, data.near_threshold)
        pool.mark_repeats()
        if evaluation_prompts:
            pool.mark_where("contaminated", lambda row: evaluation_prompts.are_in(_texts(row)), is_held_out_free=True)
        pool.mark_near_repeats(data.near_threshold)
        if pool.has_annotators:
            pool.mark_where("disputed", lambda row: _or(row["annotators_agree"], 1.0) < data.min_agreement)
        _mark_not_sampled(pool, data)
        tables, figures = pool.sort()
    tally.check_policies()
    tally.check_share(data.max_drop_share)
    preferences = Preferences(**{name: _dataset(table) for name, table in tables.items()})
    n_rows = {split: len(dataset) for split, dataset in preferences.splits().items()}
    _check_filled(n_rows, data)
    tally.check_length_bias(figures, data.max_length_bias)
    margins = [margin for margin in preferences.test["true_margin"] if margin is not None]
    return preferences, tally.report(n_rows, preferences.digest, figures, demo.ceiling(margins) if margins else None)


def load_instructions(source: Source, held_out: Preferences, data: DataSection) -> tuple[Instructions, DataReport]:
    """Load the training rows of an instruction set and return them with their report.

    Args:
        source: the instruction set; only its training split is read.
        held_out: preferences whose validation and test prompts are removed from the rows.
        data: its checks and limits apply here too.

    Raises:
        UserError: the source is missing or has no known layout, or too many rows cannot be used.
    """
    tally = Tally(data.checks)
    evaluation_prompts = EvaluationPrompts(data.contamination) if data.contamination else None
    with _scratch_folder() as folder:
        pool = Pool(EXAMPLE_SCHEMA, ("prompt", "completion"), folder, tally)
        pool.hold_out(concatenate_datasets([held_out.validation, held_out.test]))
        opened = open_source(source)
        reading = _Reading(source, opened, INSTRUCTION_LAYOUTS, train_only=True)
        for record, values, example in _read(reading, data, tally):
            pool.add(_row(record, example, values), "train")
        pool.finish()
        pool.mark_leaks({TEST: "held_out"}, {TEST: "near_held_out"}, data.near_threshold)
        pool.mark_repeats()
        if evaluation_prompts:
            pool.mark_where("contaminated", lambda row: evaluation_prompts.are_in(_texts(row)))
        pool.mark_near_repeats(data.near_threshold)
        tables, figures = pool.sort()
    tally.check_policies()
    tally.check_share(data.max_drop_share)
    instructions = Instructions(_dataset(tables["train"]))
    if not len(instructions.rows):
        raise UserError(
            f"{source.path}: none of {tally.n_read} rows is left for training: correct the rows or data.checks\n{tally.summary()}"
        )
    return instructions, tally.report({"train": len(instructions.rows)}, instructions.digest, figures)


def load_pairs(source: Source, trained_on: set[bytes], data: DataSection) -> tuple[Dataset, DataReport]:
    """Load the pairs of all splits of a source for evaluation and return them with their report.

    Args:
        trained_on: keys of prompts (`prompt_key`) whose pairs are dropped.
        data: its `max_chars` and `max_drop_share` apply here too.

    Raises:
        UserError: the source is missing or has no known layout, too many rows cannot be used, or no pair is left.
    """
    tally = Tally(data.checks)
    with _scratch_folder() as folder:
        pool = Pool(PAIR_SCHEMA, ("prompt", "chosen", "rejected"), folder, tally)
        reading = _Reading(source, open_source(source), PREFERENCE_LAYOUTS)
        for record, values, pair in _read(reading, data, tally):
            pool.add({**_row(record, pair, values), "true_margin": None}, "test")
        pool.finish()
        pool.mark_where("trained_on", lambda row: prompt_key(row["prompt"]) in trained_on)
        pool.mark_repeats()
        tables, figures = pool.sort()
    tally.check_policies()
    pairs = _dataset(tables["test"])
    if not len(pairs):
        raise UserError(
            f"{source.path}: none of {tally.n_read} pairs is left for evaluation: correct the rows or the source\n{tally.summary()}"
        )
    tally.check_share(data.max_drop_share)
    return pairs, tally.report({"test": len(pairs)}, _digest({"test": pairs}), figures)


@dataclass(frozen=True)
class _Reading(Generic[Parsed]):
    """A source that is read, and how."""

    source: Source
    opened: OpenSource
    layouts: dict[str, Layout[Parsed]]
    """Those that the source may have."""
    train_only: bool = False
    """Read the training split only."""


def _read(reading: _Reading[Parsed], data: DataSection, tally: Tally) -> Iterator[tuple[SourceRecord, Values, Parsed]]:
    """Yield each usable row of a source: its record, its renamed values, and the parsed pair or example.

    The source and its unusable rows are counted in `tally`.
    """
    source, opened, train_only = reading.source, reading.opened, reading.train_only
    records = (record for record in opened.read() if record.split == "train" or not train_only)
    head = list(islice(records, N_HEAD_ROWS))
    if not head:
        raise UserError(f"{source.path}: has no rows: correct the path")
    readable = [record.values for record in head if record.values is not None]
    if not readable:
        raise UserError(
            f"{source.path}: none of the first {len(head)} rows can be parsed, starting with {head[0].where}: the content must "
            "match the suffix, e.g. one JSON object per line for .jsonl"
        )
    check_columns(source, readable)
    name, layout = find_layout(source, [rename(values, source.columns) for values in readable], reading.layouts)
    tally.begin_source(
        path=source.path, format=name, revision=opened.revision, digest=opened.digest, objects=opened.objects
    )
    renamed = (
        ((record, values), values)
        for record in chain(head, records)
        for values in [None if record.values is None else rename(record.values, source.columns)]
    )
    with progress_bar(_count(source, train_only), f"Reading {source.path}", " rows") as bar:
        for (record, values), found in read_rows(source, layout, renamed):
            tally.read_row()
            bar.update()
            for parsed in found:
                tally.read()
                try:
                    if isinstance(parsed, Unusable):
                        raise parsed
                    assert values is not None, "a row that cannot be parsed gave a pair"
                    usable = _fix(parsed, record, tally)
                    check_row(usable.prompt, list(usable[1:]), data.max_chars)
                    as_tools(values)
                except Unusable as unusable:
                    tally.drop(unusable.reason, record.where, record.values)
                else:
                    yield record, values, usable


def _count(source: Source, train_only: bool) -> int | None:
    counts = count_rows(source)
    if counts is None:
        return None
    return counts.get("train") if train_only else sum(counts.values())


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


def _check_filled(n_rows: dict[str, int], data: DataSection) -> None:
    n_kept = sum(n_rows.values())
    if not n_rows["train"]:
        raise UserError(
            f"data: none of {n_kept} usable pairs is in the training split: add rows, or lower data.test_size"
        )
    if not n_rows["test"]:
        raise UserError(
            f"data: none of {n_kept} usable pairs is in the test split, so the model could not be evaluated: add rows, raise "
            f"data.test_size ({data.test_size:g}), or use a source with a test split"
        )


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    # Some platforms cannot delete files that are still memory-mapped.
    with TemporaryDirectory(prefix="posttrain-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _mark_not_sampled(pool: Pool, data: DataSection) -> None:
    """Mark the training pairs of each source that exceed the share given by its weight."""
    weights = [source.weight for source in data.sources if source.weight is not None]
    if weights:
        staying, sources, identities = pool.staying_to_train()
        left_out = find_left_out(sources, identities, weights, [source.path for source in data.sources], data.seed)
        pool.mark([staying[place] for place in left_out], "not_sampled")


def _row(record: SourceRecord, parsed: Pair | Example, values: Values) -> dict[str, Any]:
    tools = as_tools(values)
    row: dict[str, Any] = {**parsed._asdict(), "tools": tools}
    # The order of keys in the tools does not matter for the id.
    content = [*parsed, json.dumps(json.loads(tools), ensure_ascii=False, sort_keys=True)] if tools else list(parsed)
    row_id = hashlib.sha256(canonical(content)).hexdigest()[:16]
    return {"id": row_id, "source": record.source, "where": record.where, **row}


def _texts(row: dict[str, Any]) -> Iterator[str]:
    return (turn["content"] for part in row.values() if isinstance(part, list) for turn in part)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
