"""The layouts of a row, one module each, and how the layout of a source is found out."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config import Source
from posttrain.config.layouts import INSTRUCTION_FORMATS, PREFERENCE_FORMATS
from posttrain.data.formats.layout import Example, Layout, Pair, Parsed, Values
from posttrain.data.formats.reading import language, read_rows
from posttrain.errors import UserError

__all__ = [
    "INSTRUCTION_LAYOUTS", "PREFERENCE_LAYOUTS", "check_columns", "find_layout", "read_rows", "rename",
]  # fmt: skip


def _modules(kind: str, names: Sequence[str]) -> dict[str, Any]:
    return {name: importlib.import_module(f"posttrain.data.formats.{kind}.{name}") for name in names}


PREFERENCE_LAYOUTS: dict[str, Layout[Pair]] = _modules("preference", PREFERENCE_FORMATS)
INSTRUCTION_LAYOUTS: dict[str, Layout[Example]] = _modules("instruction", INSTRUCTION_FORMATS)
"""Name and module of each layout, in the order in which they are tried."""

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
"""What the columns of layouts are often called."""


def find_layout(
    source: Source, rows: Sequence[Values], layouts: dict[str, Layout[Parsed]]
) -> tuple[str, Layout[Parsed]]:
    """The name and module of the layout that a source has.

    Args:
        source: its `format` names the layout; `auto` has it recognised.
        rows: the first rows, renamed by `source.columns`.
        layouts: the layouts that may be: those of preference pairs, or those of instruction sets.

    Raises:
        UserError: the rows have none of the layouts, or not the one that `format` names.
    """
    columns = {column for row in rows for column in row}
    if source.format != "auto":
        if source.format not in layouts:
            raise UserError(
                f"{source.path}: format {source.format} is not possible here: must be auto, {', '.join(layouts)} "
                "(preference pairs go under data.sources, instruction sets under sft.dataset)"
            )
        layouts = {source.format: layouts[source.format]}
    for name, layout in layouts.items():
        if layout.matches(columns, rows) if source.format == "auto" else columns.issuperset(layout.COLUMNS):
            return name, layout
    raise UserError(_mismatch(source, columns, layouts))


def rename(row: Values, columns: Mapping[str, str]) -> Values:
    """The row with columns called as layouts call them.

    Args:
        columns: our name: the source's name.
    """
    if not columns:
        return row
    theirs = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in theirs and name not in columns}
    return kept | {ours: row[name] for ours, name in columns.items() if name in row}


def check_columns(source: Source, rows: Sequence[Values]) -> None:
    """Nothing, if each column that the source's settings speak of is there.

    Raises:
        UserError: one is in none of the first rows.
    """
    found = {column for row in rows for column in row}
    for ours, theirs in source.columns.items():
        if theirs not in found:
            near = difflib.get_close_matches(theirs, sorted(found), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(sorted(found))}"
            raise UserError(f"{source.path}: columns: {ours}: there is no column '{theirs}' ({hint})")
    if source.languages is not None and all(language(rename(row, source.columns)) is None for row in rows):
        raise UserError(
            f"{source.path}: languages is set, but no row says in a column `lang` or `language` what it is in, so all would be "
            "dropped: map the column with `columns: {lang: <column>}`, or drop languages"
        )


def _mismatch(source: Source, columns: set[str], layouts: dict[str, Layout[Parsed]]) -> str:
    """What to say of columns that fit none of the layouts: the nearest one, and how to map the columns to it."""

    def nearness(name: str) -> tuple[float, bool]:
        needed = layouts[name].COLUMNS
        n_near = len(columns.intersection(needed)) + 0.9 * len(_guess(needed, columns))
        return n_near / len(needed), name in ("explicit", "prompt_completion")

    nearest = max(
        (name for name in layouts if not columns.issuperset(layouts[name].COLUMNS)), key=nearness, default=None
    )
    listed = ", ".join(sorted(columns)) or "none"
    if nearest is None:
        return (
            f"{source.path}: its columns ({listed}) are those of {', '.join(layouts)}, but not their values: such are a prompt "
            "that chosen and rejected share, or lists of messages; mend the rows, or name the layout with `format`"
        )
    needed = layouts[nearest].COLUMNS
    missing = [column for column in needed if column not in columns]
    verdict = (
        f"fit no layout; the nearest, {nearest}," if source.format == "auto" else f"are not those of {nearest}, which"
    )
    guess = _guess(needed, columns)
    mapping = ", ".join(f"{column}: {guess.get(column, '<column>')}" for column in missing)
    hint = ""
    if len(columns) == 1 and any(sign in listed for sign in ";\t|"):
        hint = ". Its one column looks like several: a CSV file must have commas between them"
    return (
        f"{source.path}: its columns ({listed}) {verdict} also needs {', '.join(missing)}. If they are called otherwise, say "
        f"so with `columns: {{{mapping}}}`{hint}"
    )


def _guess(needed: Sequence[str], columns: set[str]) -> dict[str, str]:
    """Columns that a layout misses: those that are there, and probably what it means."""
    free = {column.lower(): column for column in sorted(columns.difference(needed), reverse=True)}
    found = dict[str, str]()
    for ours in needed:
        synonyms = _SYNONYMS.get(ours, "").split()
        if ours not in columns and (theirs := next((name for name in synonyms if name in free), None)):
            found[ours] = free.pop(theirs)
    return found
