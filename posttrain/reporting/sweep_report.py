"""How the points of a sweep compare, for a terminal and as a picture."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from posttrain.config import value_label
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.sweep import MEASURES, SweepOutcome


def sweep_rows(outcome: SweepOutcome) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: the points in the order of the grid, and the SFT model that they started from."""
    names = list(outcome.points[0].values)
    header = [*names, *MEASURES.values(), "drift nats", ""]
    rows = []
    for i, point in enumerate(outcome.points):
        estimates: list[Estimate | None] = [getattr(point, measure) for measure in MEASURES]
        cells = [estimate.in_percent() if estimate else "-" for estimate in estimates]
        drift = "-" if point.drift_nats is None else f"{point.drift_nats:.1f}"
        remark = "failed" if point.failure else "chosen" if i == outcome.chosen else ""
        rows.append([*map(value_label, point.values.values()), *cells, drift, remark])
    sft = ["SFT", *[""] * (len(names) - 1), outcome.sft_accuracy.in_percent(), "-", "0.0", ""]
    return header, [*rows, sft]


def render_sweep(outcome: SweepOutcome) -> Group:
    """The table for a terminal, and in words what was chosen and what failed."""
    header, rows = sweep_rows(outcome)
    shown = f"in %, {outcome.confidence:.0%} intervals"
    title = f"\n{len(outcome.points)} points, {outcome.n_pairs} validation pairs ({shown})"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        # Only the names may break into lines: two settings and their figures fit into 80 columns.
        table.add_column(name.replace(" ", "\n"), justify="right" if name else "left", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*row, style="bold" if i == outcome.chosen else None)
    failures = [f"Failed: {point.label}: {point.failure}" for point in outcome.points if point.failure]
    return Group(table, *map(Text, failures), Text(f"Chosen: {outcome.reason}"))


def sweep_picture(outcome: SweepOutcome) -> str:
    """The accuracy that was chosen by, a line a point with its interval, as SVG; the same for the same outcome."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.3 * len(outcome.points)), layout="constrained")
    axes = figure.subplots()
    for i, point in enumerate(outcome.points):
        estimate: Estimate | None = getattr(point, outcome.chosen_by)
        if estimate is None:
            axes.annotate(" failed", (0, i), xycoords=("axes fraction", "data"), va="center", color="tab:red")
            continue
        color = "tab:blue" if i == outcome.chosen else "tab:gray"
        axes.plot([100 * estimate.low, 100 * estimate.high], [i, i], color=color)
        axes.plot(100 * estimate.value, i, "o", color=color)
    if outcome.chosen_by == "likelihood_accuracy":
        axes.axvline(100 * outcome.sft_accuracy.value, color="black", linestyle=":", label="SFT")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    labels = [f"{point.label}{' (chosen)' if i == outcome.chosen else ''}" for i, point in enumerate(outcome.points)]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(f"{MEASURES[outcome.chosen_by]} on {outcome.n_pairs} validation pairs, in %")
    svg = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sweep", "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()
