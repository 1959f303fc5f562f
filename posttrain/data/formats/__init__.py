"""The layouts of rows, one module each, and the detection of a source's layout."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config import Source
from posttrain.config.layouts import INSTRUCTION_FORMATS, PREFERENCE_FORMATS
from posttrain.data.checks import Unusable, check_row
from posttrain.data.formats import prompts_only
from posttrain.data.formats.layout import Example, Layout, Pair, Parsed, Scored, Values
from posttrain.data.formats.preference import comparison, pair_columns
from posttrain.data.formats.reading import language, read_rows
from posttrain.errors import UserError

__all__ = [
    "INSTRUCTION_LAYOUTS", "PREFERENCE_LAYOUTS", "PROMPT_LAYOUTS", "check_columns", "find_layout", "prepare", "read_rows", "rename",
]  # fmt: skip


_OBJECTS = pair_columns.LAYOUTS | comparison.LAYOUTS
_FOLDERS = {
    **dict.fromkeys(("oasst_messages", "oasst_trees"), "openassistant."),
    **dict.fromkeys(("webgpt", "summarize_feedback", "openai_preference"), "openai."),
}


def _layout(kind: str, name: str) -> Any:
    """Return a layout: an object of one of the families, or the module of its name."""
    if name in _OBJECTS:
        return _OBJECTS[name]
    return importlib.import_module(f"posttrain.data.formats.{kind}.{_FOLDERS.get(name, '')}{name}")


PREFERENCE_LAYOUTS: dict[str, Layout[Pair]] = {name: _layout("preference", name) for name in PREFERENCE_FORMATS}
INSTRUCTION_LAYOUTS: dict[str, Layout[Example]] = {name: _layout("instruction", name) for name in INSTRUCTION_FORMATS}
PROMPT_LAYOUTS: dict[str, Layout[Any]] = {**PREFERENCE_LAYOUTS, **INSTRUCTION_LAYOUTS, "prompts_only": prompts_only}
"""Layouts by name, in the order in which they are tried."""

_SYNONYMS = {
    "prompt": "question query instruction input text post history context",
    "chosen": "good better preferred accepted positive winner best response_chosen chosen_response",
    "rejected": "bad worse dispreferred refused negative loser worst response_rejected rejected_response",
    "completion": "answer response output reply target",
    "output": "answer response completion reply target",
    "instruction": "prompt question query",
    "messages": "conversation dialogue dialog turns",
    "conversations": "conversation dialogue dialog turns",
    "response_1": "response1 response_a answer_1 answer1 answer_a output_1 output_a completion_a",
    "response_2": "response2 response_b answer_2 answer2 answer_b output_2 output_b completion_b",
    "label": "winner preference preferred better",
}
"""Common other names of the layouts' columns."""


def find_layout(
    source: Source, rows: Sequence[Values], layouts: dict[str, Layout[Parsed]]
) -> tuple[str, Layout[Parsed]]:
    """Return the name and module of the layout of a source.

    Args:
        source: its `format` is the layout, or `auto` to detect it.
        rows: the first rows, renamed by `source.columns`.
        layouts: the allowed layouts: those of preference pairs, or those of instruction sets.

    Raises:
        UserError: the rows have none of the layouts, or not the one set by `format`.
    """
    columns = {column for row in rows for column in row}
    if source.format != "auto":
        if source.format not in layouts:
            raise UserError(
                f"{source.path}: format {source.format} is not allowed here: must be auto, {', '.join(layouts)} "
                "(preference pairs belong in data.sources, instruction sets in sft.dataset)"
            )
        layouts = {source.format: layouts[source.format]}
    for name, layout in layouts.items():
        if layout.matches(columns, rows) if source.format == "auto" else columns.issuperset(layout.COLUMNS):
            return name, layout
    raise UserError(_mismatch(source, columns, rows, layouts))


def rename(row: Values, columns: Mapping[str, str]) -> Values:
    """Return the row with our column names.

    Args:
        row: a row of the source.
        columns: the source's column name by ours.
    """
    if not columns:
        return row
    theirs = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in theirs and name not in columns}
    return kept | {ours: row[name] for ours, name in columns.items() if name in row}


def prepare(layout: Layout[Any], row: Values) -> Values:
    """Return a renamed row as the layout parses it: some layouts nest their columns."""
    return layout.prepare(row) if hasattr(layout, "prepare") else row


def check_columns(source: Source, rows: Sequence[Values]) -> None:
    """Check that the columns named in the settings of a source exist.

    Raises:
        UserError: a column is in none of the first rows.
    """
    found = {column for row in rows for column in row}
    for ours, theirs in source.columns.items():
        if theirs not in found:
            near = difflib.get_close_matches(theirs, sorted(found), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"columns: {', '.join(sorted(found))}"
            raise UserError(f"{source.path}: columns: {ours}: there is no column '{theirs}' ({hint})")
    if source.languages is not None and all(language(rename(row, source.columns)) is None for row in rows):
        raise UserError(
            f"{source.path}: languages is set, but no row has a column `lang` or `language`, so all rows would be dropped: map the "
            "column with `columns: {lang: <column>}`, or remove languages"
        )


def _mismatch(source: Source, columns: set[str], rows: Sequence[Values], layouts: dict[str, Layout[Parsed]]) -> str:
    """Return the error for columns that match no layout: the nearest layout, and how to map the columns to it."""

    def nearness(name: str) -> tuple[float, bool]:
        needed = layouts[name].COLUMNS
        if not needed:
            return 0.0, False
        n_near = len(columns.intersection(needed)) + 0.9 * len(_guess(needed, columns))
        return n_near / len(needed), name in ("explicit", "prompt_completion", "two_answers")

    nearest = max(
        (name for name in layouts if not columns.issuperset(layouts[name].COLUMNS)), key=nearness, default=None
    )
    listed = ", ".join(sorted(columns)) or "none"
    if nearest is None:
        return (
            f"{source.path}: its columns ({listed}) match {', '.join(layouts)}, but its values do not, e.g. chosen and rejected "
            "without a common prompt: correct the rows, or set the layout with `format`"
        )
    needed = layouts[nearest].COLUMNS
    missing = [column for column in needed if column not in columns]
    verdict = (
        f"match no layout; the nearest one, {nearest},"
        if source.format == "auto"
        else f"do not match layout {nearest}, which"
    )
    guess = _guess(needed, columns)
    hint = ""
    if len(columns) == 1 and any(sign in listed for sign in ";\t|"):
        hint = ". The single column looks like several: CSV files must use commas as separators"
    head = f"{source.path}: its columns ({listed}) {verdict} also needs {', '.join(missing)}"
    if guess and not _parses(layouts[nearest], [rename(row, guess) for row in rows]):
        return f"{head}, and its rows do not parse with other columns in their place: convert them to that layout{hint}"
    mapping = ", ".join(f"{column}: {guess.get(column, '<column>')}" for column in missing)
    return f"{head}. If they have other names, map them with `columns: {{{mapping}}}`{hint}"


def _parses(layout: Layout[Parsed], rows: Sequence[Values]) -> bool:
    """Return whether at least half of the rows parse, of those that have the layout's columns."""
    complete = [row for row in rows if row.keys() >= set(layout.COLUMNS)]
    if not complete or not hasattr(layout, "parse"):
        return True
    n = 0
    for row in complete:
        try:
            found = layout.parse(row)
            for item in found if isinstance(found, list) else [found]:
                parsed = item.pair if isinstance(item, Scored) else item
                check_row(parsed.prompt, list(parsed[1:]), sys.maxsize)
            n += 1
        except Unusable:
            continue
    return 2 * n >= len(complete)


def _guess(needed: Sequence[str], columns: set[str]) -> dict[str, str]:
    """Return the probable column of the source for each missing column of a layout."""
    free = {column.lower(): column for column in sorted(columns.difference(needed), reverse=True)}
    found = dict[str, str]()
    for ours in needed:
        synonyms = _SYNONYMS.get(ours, "").split()
        if ours not in columns and (theirs := next((name for name in synonyms if name in free), None)):
            found[ours] = free.pop(theirs)
    return found
