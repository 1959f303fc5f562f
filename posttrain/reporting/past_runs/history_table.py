"""The history of a model as a table on a terminal, which leaves out columns that do not fit."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from posttrain.reporting.past_runs.nights import ModelHistory, NightRow, table_rows, used_columns
from posttrain.reporting.plain_console import PlainConsole

COLUMNS = ("when, UTC", "outcome", "accuracy", "gain", "rows", "cost", "time", "win rate", "looks", "GPU time", "over")
"""From the most to the least important."""
ORDER = ("when, UTC", "outcome", "accuracy", "gain", "over", "win rate", "rows", "looks", "time", "GPU time", "cost")
N_KEPT = 4
"""Columns that stay on a terminal of 60 characters."""
STYLES = {"promoted": "bold green", "failed": "red", "taken back": "bold"}


def print_history(history: ModelHistory, n_rows: int | None = None, console: Console | None = None) -> None:
    """Print a model's history, the newest run last.

    Args:
        n_rows: rows to print; None for all.
    """
    console = console or PlainConsole()
    rows = table_rows(history.nights)
    shown = rows[-n_rows:] if n_rows else rows
    console.print(Text(f"\nHistory of {history.model}", style="bold"))
    if len(shown) < len(rows):
        console.print(Text(f"{len(rows) - len(shown)} earlier rows are left out: --all shows them"))
    console.print(_fitting(shown, console))
    for row in shown:
        if row.night.note:
            console.print(Text(f"{row.night.at:%m-%d %H:%M} {row.night.outcome}: {row.night.note}"))
    for line in history.summary():
        console.print(Text(line))


def _fitting(rows: Sequence[NightRow], console: Console) -> Table:
    """Return the table with as many columns as fit; before the gain is left out, the year is."""
    unlimited = console.options.update(max_width=10_000)
    used = used_columns(rows, COLUMNS)
    formats = [(n, False) for n in range(len(used), N_KEPT, -1)] + [(n, True) for n in range(N_KEPT, 2, -1)]
    for n, short in formats:
        table = _table(rows, used[:n], short)
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            return table
    return _table(rows, used[:2], True)


def _table(rows: Sequence[NightRow], names: Sequence[str], without_year: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = [name for name in ORDER if name in names]
    for name in columns:
        table.add_column(name, justify="left" if name in ("when, UTC", "outcome", "over") else "right", no_wrap=True)
    for row in rows:
        cells = row.cells()
        if without_year:
            cells["when, UTC"] = cells["when, UTC"].partition("-")[2]
        table.add_row(*(Text(cells[name]) for name in columns), style=STYLES.get(row.night.outcome))
    return table
