"""The layouts of a row, one module each, and how the layout of a source is found out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from posttrain.config import Column, Source
from posttrain.data.formats import (
    alpaca,
    conversational,
    explicit,
    hh_rlhf,
    implicit,
    messages,
    prompt_completion,
)
from posttrain.data.formats.layout import Example, Layout, Pair, Parsed, Values
from posttrain.errors import UserError

# In the order in which they are tried: the more special before the more general.
PREFERENCE_LAYOUTS: dict[str, Layout[Pair]] = {
    "hh_rlhf": hh_rlhf,
    "conversational": conversational,
    "explicit": explicit,
    "implicit": implicit,
}
INSTRUCTION_LAYOUTS: dict[str, Layout[Example]] = {
    "messages": messages,
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
}


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


def rename(row: Values, columns: Mapping[Column, str]) -> Values:
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
    """Nothing, if each column that `source.columns` names is there.

    Raises:
        UserError: one is in none of the first rows.
    """
    found = {column for row in rows for column in row}
    for ours, theirs in source.columns.items():
        if theirs not in found:
            near = difflib.get_close_matches(theirs, sorted(found), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(sorted(found))}"
            raise UserError(f"{source.path}: columns: {ours}: there is no column '{theirs}' ({hint})")


def _mismatch(source: Source, columns: set[str], layouts: dict[str, Layout[Parsed]]) -> str:
    """What to say of columns that fit none of the layouts: the nearest one, and how to map the columns to it."""

    def nearness(name: str) -> tuple[float, int]:
        needed = layouts[name].COLUMNS
        return len(columns.intersection(needed)) / len(needed), len(needed)

    nearest = max((name for name in layouts if not columns.issuperset(layouts[name].COLUMNS)), key=nearness)
    missing = [column for column in layouts[nearest].COLUMNS if column not in columns]
    verdict = (
        f"fit no layout; the nearest, {nearest}," if source.format == "auto" else f"are not those of {nearest}, which"
    )
    mapping = ", ".join(f"{column}: <column>" for column in missing)
    return (
        f"{source.path}: its columns ({', '.join(sorted(columns)) or 'none'}) {verdict} also needs "
        f"{', '.join(missing)}. If they are called otherwise, say so with `columns: {{{mapping}}}`"
    )
