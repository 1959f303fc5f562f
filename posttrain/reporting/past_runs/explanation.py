"""Why each step of a run was computed or taken from the cache, in lines of plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

N_IDS = 5
"""Ids of rows that are shown, unless all are asked for."""
N_NAMES = 8
"""Modules and files that are shown of a list."""


@dataclass(frozen=True)
class RowChanges:
    """Rows of the data that only one of two runs has. A row with other text has another id, so it counts as both."""

    added: dict[str, list[str]]
    """Ids of the rows that only the later run has, by source."""
    removed: dict[str, list[str]]
    moved: int = 0
    """Rows that both have in different splits."""


@dataclass(frozen=True)
class StepReason:
    """What happened to a step, and why."""

    name: str
    state: str
    """`cached`, `ran`, `failed`, `stopped`, `running`."""
    reasons: list[str]


@dataclass(frozen=True)
class Explanation:
    """A run compared with the last one of the same model."""

    run: str
    model: str
    outcome: str
    """How the run ended, in a line."""
    earlier: str | None
    """Name of the run that it is compared with; None if it is the first one of its model."""
    steps: list[StepReason]
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Old and new value of each setting that differs."""
    rows: RowChanges | None = None
    notes: list[str] = field(default_factory=list)
    """What could not be compared."""
    files: list[str] = field(default_factory=list)
    """Changed sources and files of the data and the base model, one in a line."""
    packages: dict[str, tuple[str, str]] = field(default_factory=dict)
    code: list[str] = field(default_factory=list)
    """Modules that differ, with `new` or `removed` where only one run has them."""


def explanation_lines(found: Explanation, width: int, all_ids: bool = False) -> Iterator[str]:
    """Yield the explanation of a run, no line longer than `width` unless a name is.

    Args:
        all_ids: whether to show the ids of all changed rows.
    """
    yield f"Run {found.run}: {found.outcome}"
    if found.earlier is None:
        yield from _wrapped(f"It is the first run of model {found.model}, so there is none to compare it with.", width)
    else:
        yield from _wrapped(f"Compared with the run of model {found.model} before it: {found.earlier}", width)
        yield ""
        nothing = _wrapped("Nothing changed: neither rows nor settings, files, packages or code.", width)
        yield from list(_changes(found, width, all_ids)) or nothing
    for note in found.notes:
        yield from _wrapped(note, width)
    yield ""
    name_width = max((len(step.name) for step in found.steps), default=0)
    for step in found.steps:
        start = f"{step.name:{name_width}}  {step.state:7}  "
        yield from _wrapped("; ".join(step.reasons), width, start)


def _changes(found: Explanation, width: int, all_ids: bool) -> Iterator[str]:
    if found.rows:
        yield from _row_lines(found.rows, width, all_ids)
    for title, pairs in (("settings", found.settings), ("packages", found.packages)):
        for name, (old, new) in pairs.items():
            yield from _wrapped(f"{name}: {old} -> {new}", width, f"{title:9} ")
    for file in found.files:
        yield from _wrapped(file, width, f"{'files':9} ")
    if found.code:
        yield from _wrapped(listed(found.code, N_NAMES), width, f"{'code':9} ")


def _row_lines(rows: RowChanges, width: int, all_ids: bool) -> Iterator[str]:
    for sign, word, by_source in (("+", "added", rows.added), ("-", "removed", rows.removed)):
        for source, ids in by_source.items():
            shown = ids if all_ids else ids[:N_IDS]
            more = f" and {len(ids) - len(shown)} more (--ids shows all)" if len(ids) > len(shown) else ""
            yield from _wrapped(f"{sign}{len(ids)} {word}, {source}: {' '.join(shown)}{more}", width, f"{'rows':9} ")
    if rows.moved:
        yield from _wrapped(f"{rows.moved} rows are in another split", width, f"{'rows':9} ")


def listed(names: list[str], at_most: int) -> str:
    """Return names in a row, and how many more there are."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return f"{', '.join(names[:at_most])}{more}"


def differences(old: Mapping[str, str], new: Mapping[str, str], absent: str = "-") -> dict[str, tuple[str, str]]:
    """Return the old and the new value of each name whose values differ, in order."""
    return {
        name: (old.get(name, absent), new.get(name, absent))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _wrapped(text: str, width: int, start: str = "") -> Iterator[str]:
    """Yield a text that begins after `start` and whose further lines are indented as far, or less on a narrow terminal."""
    indent = " " * min(len(start), max(2, width // 3))
    lines = textwrap.wrap(
        f"{start}{text}", max(20, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True,
    )  # fmt: skip
    yield from lines or [start.rstrip()]
