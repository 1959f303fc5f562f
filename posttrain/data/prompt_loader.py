"""Loads prompts to collect answers to: those of the training pairs, or those of other sources without held-out ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from posttrain.config import DataSection, Source
from posttrain.data.formats import PROMPT_LAYOUTS
from posttrain.data.formats.turns import as_tools
from posttrain.data.pool import TEST, Pool
from posttrain.data.report import DataReport, Tally
from posttrain.data.row_reading import SourceReading, read_source
from posttrain.data.rows import canonical
from posttrain.data.sources import open_source
from posttrain.data.splits import prompt_key
from posttrain.data.spool import TURNS, lean_rows
from posttrain.data.stored import Preferences
from posttrain.errors import UserError

PROMPT_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("prompt", TURNS), ("tools", pa.string())])


def training_prompts(preferences: Preferences) -> Dataset:
    """Return the rows of the training split, reduced to the columns of `PROMPT_SCHEMA`."""
    rows = preferences.train
    return rows.select_columns([name for name in PROMPT_SCHEMA.names if name in rows.column_names])


def held_out_keys(preferences: Preferences) -> set[bytes]:
    """Return the keys (`prompt_key`) of the validation and test prompts."""
    return {prompt_key(prompt) for rows in (preferences.validation, preferences.test) for prompt in rows["prompt"]}


def load_prompts(sources: list[Source], held_out: Preferences, data: DataSection) -> tuple[Dataset, DataReport]:
    """Return the prompts of sources that have any known layout, without those that are held out, and a report on every row.

    Args:
        held_out: preferences whose validation and test prompts, and near copies of these, are removed.
        data: its checks and limits apply here too.

    Raises:
        UserError: a source is missing or has no known layout, too many rows cannot be used, or no prompt is left.
    """
    tally = Tally(data.checks)
    with TemporaryDirectory(prefix="posttrain-", ignore_cleanup_errors=True) as folder:
        pool = Pool(PROMPT_SCHEMA, ("prompt",), Path(folder), tally)
        pool.hold_out(concatenate_datasets([held_out.validation, held_out.test]))
        for source in sources:
            reading = SourceReading(source, open_source(source), PROMPT_LAYOUTS, train_only=True)
            for record, values, parsed in read_source(reading, data, tally):
                row_id = hashlib.sha256(canonical(parsed.prompt)).hexdigest()[:16]
                row = {"id": row_id, "prompt": parsed.prompt, "tools": as_tools(values)}
                pool.add({**row, "source": record.source, "where": record.where}, "train")
        pool.finish()
        pool.mark_leaks({TEST: "held_out"}, {TEST: "near_held_out"}, data.near_threshold)
        pool.mark_repeats()
        tables, figures = pool.sort()
    tally.check_policies()
    tally.check_share(data.max_drop_share)
    prompts = Dataset(tables["train"])
    if not len(prompts):
        raise UserError(
            f"{', '.join(source.path for source in sources)}: none of {tally.n_read} prompts is left: correct the rows\n"
            f"{tally.summary()}"
        )
    digest = hashlib.sha256(canonical(list(prompts["id"]))).hexdigest()
    return prompts, tally.report({"train": len(prompts)}, digest, figures)


def choose_by_hash(prompts: Dataset, n: int, seed: int) -> list[dict[str, Any]]:
    """Return at most `n` rows with different prompts. Which ones depends on prompts and seed, not on their order."""
    first: dict[bytes, int] = {}
    for i, prompt in enumerate(prompts["prompt"]):
        first.setdefault(hashlib.sha256(f"collect {seed}:".encode() + prompt_key(prompt)).digest(), i)
    chosen = prompts.select([first[key] for key in sorted(first)[:n]])
    return list(lean_rows(chosen.with_format("arrow")[:]))
