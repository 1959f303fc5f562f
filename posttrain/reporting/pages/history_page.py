"""The page with the history of a model: a chart of its accuracy and its data, then all runs, the newest first."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from posttrain.reporting.drawing import COLOURS, INK, OUTSIDE, figure_svg, new_figure
from posttrain.reporting.html import Picture, Table, render
from posttrain.reporting.past_runs.nights import (
    TAKEN_BACK,
    UNCHANGED,
    ModelHistory,
    Night,
    NightRow,
    table_rows,
    used_columns,
)

COLUMNS = ("when, UTC", "outcome", "accuracy", "gain", "win rate", "rows", "looks", "time", "cost")
CAPTION = "Preference accuracy of each judged model"
NOTE = (
    "Lines are confidence intervals. Filled: promoted. Dotted line: a version was taken back. Below: rows of the data. Test sets "
    "may differ between runs; the gain in the table is always on the same pairs."
)
TERMS = [
    ("accuracy", "share of the test pairs that the newest model of the run ranks correctly, in %"),
    (
        "gain",
        "its accuracy minus that of the model named under `over`, on the same pairs, in points with confidence interval",
    ),
    ("win rate", "share of prompts on which its answer beats that of the same opponent, in %"),
    ("rows", "rows of the data that are kept; in brackets the change since the run before"),
    ("looks", "comparisons of a model with its opponent on these test prompts so far"),
    ("cost", "of the GPU time: that of each step times the GPUs of its machine"),
]


def history_page(history: ModelHistory) -> str:
    """Return the history of a model as one self-contained HTML page."""
    rows = list(reversed(table_rows(history.nights)))
    columns = used_columns(rows, COLUMNS)
    judged = [night for night in history.nights if night.record and night.outcome != UNCHANGED]
    return render(
        "history.html.jinja",
        title=f"History of {history.model}",
        summary=history.summary(),
        picture=Picture(CAPTION, _picture(history, judged), NOTE) if judged else None,
        runs=Table([*columns, "run"], [_row(row, columns) for row in rows], is_prose=True),
        terms=[(name, meaning) for name, meaning in TERMS if name in columns],
        incomplete=not history.complete,
    )


def _row(row: NightRow, columns: list[str]) -> list[str]:
    cells = row.cells()
    name = "" if row.night.outcome == TAKEN_BACK else row.night.name
    return [*(cells[column] for column in columns), "\n".join(part for part in (name, row.night.note) if part)]


def _picture(history: ModelHistory, judged: list[Night]) -> Markup:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    figure, axes = new_figure(7.2, 3.6)
    axes.remove()
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _accuracies(upper, judged)
    for night in history.nights:
        if night.outcome == TAKEN_BACK:
            upper.axvline(night.at, color=INK, linestyle=":")
    known = [night for night in history.nights if night.record]
    lower.plot(
        [n.at for n in known], [n.record.n_rows for n in known if n.record], color=COLOURS[2], drawstyle="steps-post"
    )
    lower.set_ylim(bottom=0)
    lower.set_ylabel("rows")
    locator = AutoDateLocator(minticks=2, maxticks=6)
    lower.xaxis.set_major_locator(locator)
    lower.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    for panel in (upper, lower):
        _style(panel)
    lower.xaxis.get_offset_text().set_color(INK)
    return figure_svg(figure, CAPTION)


def _accuracies(axes: Any, judged: list[Night]) -> None:
    for outcome, filled, colour in (("promoted", True, COLOURS[0]), ("refused", False, COLOURS[1])):
        found = [(night.at, night.record.accuracy) for night in judged if night.record and night.outcome == outcome]
        if not found:
            continue
        axes.vlines(
            [at for at, _ in found],
            [100 * e.low for _, e in found],
            [100 * e.high for _, e in found],
            color=colour,
            linewidth=1,
        )
        axes.plot(
            [at for at, _ in found], [100 * e.value for _, e in found], "o", label=outcome, color=colour,
            markerfacecolor=colour if filled else "none",
        )  # fmt: skip
    axes.set_ylabel("accuracy in %")
    axes.legend(**OUTSIDE)


def _style(axes: Any) -> None:
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    for part in (*axes.spines.values(),):
        part.set_color(INK)
    axes.yaxis.label.set_color(INK)
