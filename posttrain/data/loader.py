"""Loads the sources of a config as checked and split preferences or instructions, with a report that covers every row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset, concatenate_datasets

from posttrain.config import DataSection, Source
from posttrain.data.copies.contamination import EvaluationPrompts
from posttrain.data.demo import pairs as demo
from posttrain.data.exclusion import Exclusion
from posttrain.data.formats import INSTRUCTION_LAYOUTS, PREFERENCE_LAYOUTS
from posttrain.data.formats.layout import Example, Pair, Parsed, PromptOnly, Values
from posttrain.data.formats.turns import as_tools
from posttrain.data.mixture import find_left_out, find_not_replayed
from posttrain.data.pool import LEAKS, NEAR_LEAKS, TEST, Pool
from posttrain.data.profile import agreement
from posttrain.data.report import DataReport, Tally
from posttrain.data.row_reading import SourceReading, read_source
from posttrain.data.rows import canonical
from posttrain.data.sources import DEMO, SourceRecord, open_source
from posttrain.data.splits import choose_split, prompt_key
from posttrain.data.stored import EXAMPLE_SCHEMA, PAIR_SCHEMA, Instructions, Preferences, _dataset, _digest
from posttrain.errors import UserError


def load_preferences(data: DataSection) -> tuple[Preferences, DataReport]:
    """Load the preference pairs of all sources and return them with their report.

    Raises:
        UserError: a source is missing or has no known layout, too many rows cannot be used, a row fails a check with policy
            `fail`, or a split is empty.
    """
    tally, exclusion = Tally(data.checks), Exclusion(data.exclude)
    evaluation_prompts = EvaluationPrompts(data.contamination) if data.contamination else None
    with _scratch_folder() as folder:
        pool = Pool(PAIR_SCHEMA, ("prompt", "chosen", "rejected"), folder, tally)
        for source in data.sources:
            opened = open_source(source)
            reading = SourceReading(source, opened, PREFERENCE_LAYOUTS)
            for record, values, row in _rows(reading, data, tally, exclusion):
                split = record.split
                if split == "train":
                    chosen_split = choose_split(
                        prompt_key(row["prompt"]), data.seed, data.test_size, data.validation_size
                    )
                    split = "train" if chosen_split in opened.splits else chosen_split
                true_margin = values["true_margin"] if source.location == DEMO else None
                pool.add({**row, "true_margin": true_margin, "annotators_agree": agreement(values)}, split)
        pool.finish()
        pool.mark_leaks(LEAKS, NEAR_LEAKS, data.near_threshold)
        pool.mark_repeats()
        if evaluation_prompts:
            pool.mark_where("contaminated", lambda row: evaluation_prompts.are_in(_texts(row)), is_held_out_free=True)
        pool.mark_near_repeats(data.near_threshold)
        if pool.has_annotators:
            pool.mark_where("disputed", lambda row: _or(row["annotators_agree"], 1.0) < data.min_agreement)
        _mark_not_sampled(pool, data.sources, data.seed)
        if data.replay is not None:
            _mark_not_replayed(pool, data, data.replay)
        tables, figures = pool.sort()
    tally.unmatched_exclusions = exclusion.unmatched()
    tally.check_policies()
    tally.check_share(data.max_drop_share)
    preferences = Preferences(**{name: _dataset(table) for name, table in tables.items()})
    n_rows = {split: len(dataset) for split, dataset in preferences.splits().items()}
    _check_filled(n_rows, data)
    tally.check_length_bias(figures, data.max_length_bias)
    margins = [margin for margin in preferences.test["true_margin"] if margin is not None]
    return preferences, tally.report(n_rows, preferences.digest, figures, demo.ceiling(margins) if margins else None)


def load_instructions(
    sources: Source | list[Source], held_out: Preferences, data: DataSection
) -> tuple[Instructions, DataReport]:
    """Load the training rows of instruction sets and return them with their report.

    Args:
        sources: an instruction set or several; only their training splits are read.
        held_out: preferences whose validation and test prompts are removed from the rows.
        data: its checks and limits apply here too.

    Raises:
        UserError: a source is missing or has no known layout, or too many rows cannot be used.
    """
    sources = sources if isinstance(sources, list) else [sources]
    tally, exclusion = Tally(data.checks), Exclusion(data.exclude)
    evaluation_prompts = EvaluationPrompts(data.contamination) if data.contamination else None
    with _scratch_folder() as folder:
        pool = Pool(EXAMPLE_SCHEMA, ("prompt", "completion"), folder, tally)
        pool.hold_out(concatenate_datasets([held_out.validation, held_out.test]))
        for source in sources:
            reading = SourceReading(source, open_source(source), INSTRUCTION_LAYOUTS, train_only=True)
            for _, _, row in _rows(reading, data, tally, exclusion):
                pool.add(row, "train")
        pool.finish()
        pool.mark_leaks({TEST: "held_out"}, {TEST: "near_held_out"}, data.near_threshold)
        pool.mark_repeats()
        if evaluation_prompts:
            pool.mark_where("contaminated", lambda row: evaluation_prompts.are_in(_texts(row)))
        pool.mark_near_repeats(data.near_threshold)
        _mark_not_sampled(pool, sources, data.seed)
        tables, figures = pool.sort()
    tally.unmatched_exclusions = exclusion.unmatched()
    tally.check_policies()
    tally.check_share(data.max_drop_share)
    instructions = Instructions(_dataset(tables["train"]))
    if not len(instructions.rows):
        raise UserError(
            f"{', '.join(source.path for source in sources)}: none of {tally.n_read} rows is left for training: correct the "
            f"rows or data.checks\n{tally.summary()}"
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
    tally, exclusion = Tally(data.checks), Exclusion(data.exclude)
    with _scratch_folder() as folder:
        pool = Pool(PAIR_SCHEMA, ("prompt", "chosen", "rejected"), folder, tally)
        reading = SourceReading(source, open_source(source), PREFERENCE_LAYOUTS)
        for _, _, row in _rows(reading, data, tally, exclusion):
            pool.add({**row, "true_margin": None}, "test")
        pool.finish()
        pool.mark_where("trained_on", lambda row: prompt_key(row["prompt"]) in trained_on)
        pool.mark_repeats()
        tables, figures = pool.sort()
    tally.unmatched_exclusions = exclusion.unmatched()
    tally.check_policies()
    pairs = _dataset(tables["test"])
    if not len(pairs):
        raise UserError(
            f"{source.path}: none of {tally.n_read} pairs is left for evaluation: correct the rows or the source\n{tally.summary()}"
        )
    tally.check_share(data.max_drop_share)
    return pairs, tally.report({"test": len(pairs)}, _digest({"test": pairs}), figures)


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


def _mark_not_sampled(pool: Pool, sources: list[Source], seed: int) -> None:
    """Mark the training rows of each source that exceed the share given by its weight."""
    weights = [source.weight for source in sources if source.weight is not None]
    if weights:
        staying, indices, identities = pool.staying_to_train()
        left_out = find_left_out(indices, identities, weights, [source.path for source in sources], seed)
        pool.mark([staying[place] for place in left_out], "not_sampled")


def _mark_not_replayed(pool: Pool, data: DataSection, share: float) -> None:
    """Mark the old training rows that exceed `data.replay`."""
    staying, indices, identities = pool.staying_to_train()
    if len(data.sources) - 1 not in indices:
        raise UserError(
            f"{data.sources[-1].path}: has no training pairs left, so data.replay has no new pairs: correct the source, or remove "
            "data.replay"
        )
    left_out = find_not_replayed(indices, identities, share, data.seed)
    pool.mark([staying[place] for place in left_out], "not_sampled")


def _rows(
    reading: SourceReading[Parsed], data: DataSection, tally: Tally, exclusion: Exclusion
) -> Iterator[tuple[SourceRecord, Values, dict[str, Any]]]:
    """Yield the record, the values and the finished row of each usable pair or example that is not excluded."""
    for record, values, parsed in read_source(reading, data, tally):
        row = _row(record, parsed, values)
        if exclusion.covers(row, (record.values or {}).get("id")):
            tally.drop("excluded", record.where, f"id {row['id']}")  # its text may be a person's
        else:
            yield record, values, row


def _row(record: SourceRecord, parsed: Pair | Example | PromptOnly, values: Values) -> dict[str, Any]:
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
