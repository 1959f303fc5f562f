"""Compare the points of a sweep, as a table on a terminal and as a picture."""

from __future__ import annotations

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from posttrain.config import value_label
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.labels import ABSENT, METRICS, STAGES, percent, sample_size
from posttrain.evaluation.sweep import MEASURES, SweepOutcome
from posttrain.reporting.drawing import COLOURS, INK, OUTSIDE, figure_svg, new_figure


def sweep_rows(outcome: SweepOutcome) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table: the points in the order of the grid, then the SFT model that they started from."""
    names = list(outcome.points[0].values)
    header = [*names, *(METRICS[measure].short for measure in MEASURES), "drift nats", ""]
    rows = []
    for i, point in enumerate(outcome.points):
        estimates: list[Estimate | None] = [getattr(point, measure) for measure in MEASURES]
        cells = [percent(estimate) for estimate in estimates]
        drift = ABSENT if point.drift_nats is None else f"{point.drift_nats:.1f}"
        remark = "failed" if point.failure else "chosen" if i == outcome.chosen else ""
        rows.append([*map(value_label, point.values.values()), *cells, drift, remark])
    sft = [STAGES["sft"], *[""] * (len(names) - 1), percent(outcome.sft_accuracy), ABSENT, "0.0", ""]
    return header, [*rows, sft]


def render_sweep(outcome: SweepOutcome) -> Group:
    """Return the table for a terminal, with what was chosen and what failed in words."""
    header, rows = sweep_rows(outcome)
    shown = f"in %, {outcome.confidence:.0%} intervals"
    title = f"\n{len(outcome.points)} points, {sample_size(outcome, 'validation ')} ({shown})"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        # Only the names wrap, so that two settings and their figures fit into 80 columns.
        table.add_column(name.replace(" ", "\n"), justify="right" if name else "left", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*row, style="bold" if i == outcome.chosen else None)
    failures = [f"Failed: {point.label}: {point.failure}" for point in outcome.points if point.failure]
    return Group(table, *map(Text, failures), Text(f"Chosen: {outcome.reason}"))


def sweep_picture(outcome: SweepOutcome) -> Markup:
    """Draw the accuracy that decides the sweep, one line for each point with its interval, as SVG."""
    figure, axes = new_figure(8, 1.2 + 0.3 * len(outcome.points))
    for i, point in enumerate(outcome.points):
        estimate: Estimate | None = getattr(point, outcome.chosen_by)
        if estimate is None:
            axes.annotate(" failed", (0, i), xycoords=("axes fraction", "data"), va="center", color=COLOURS[3])
            continue
        color = COLOURS[0] if i == outcome.chosen else "#8a8f98"
        axes.plot([100 * estimate.low, 100 * estimate.high], [i, i], color=color)
        axes.plot(100 * estimate.value, i, "o", color=color)
    if outcome.chosen_by == "likelihood_accuracy":
        axes.axvline(100 * outcome.sft_accuracy.value, color=INK, linestyle=":", label=STAGES["sft"])
        axes.legend(**OUTSIDE)
    labels = [f"{point.label}{' (chosen)' if i == outcome.chosen else ''}" for i, point in enumerate(outcome.points)]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(f"{METRICS[outcome.chosen_by].name} on {sample_size(outcome, 'validation ')}, in %")
    return figure_svg(figure, "sweep")
