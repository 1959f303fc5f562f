"""Write the tables and the picture of docs/performance.md from the results: `python -m benchmarks.table`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import BASELINE, RESULTS, ROOT

Row = dict[str, Any]
BEGIN, END = "<!-- from `make bench-table`; a test compares -->", "<!-- end of `make bench-table` -->"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = PAGE.parent / "images" / "pairs_per_s.svg"
LABELS = {
    "ours": "this project",
    "trl_default": "TRL, defaults",
    "trl_best": "TRL, precomputed reference, no checkpointing",
    "llamafactory": "LLaMA-Factory 0.9.5",
}
COLOURS = {
    "ours": "#1b6ca8",
    "trl_default": "#b8b8b8",
    "trl_best": "#8a8a8a",
    "llamafactory": "#d9a441",
}
COLUMNS = (
    "| model, method, precision | engine | pairs/s | × TRL's defaults | wall time | peak memory | tokens per pair "
    "| LM head rows per pair | losses |",
    "|---|---|---|---|---|---|---|---|---|",
)
OTHERS = ("ladder", "sweep-", "growth", "load")
"""Prefixes of the groups that have tables of their own."""


def read_results(folder: Path = RESULTS) -> dict[str, list[Row]]:
    """Return the rows of every group, by the group's name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def table(groups: dict[str, list[Row]]) -> str:
    """Return all tables as Markdown."""
    engines = {name: rows for name, rows in groups.items() if not name.startswith(OTHERS)}
    for name in list(engines):
        engines.pop(f"quick-{name}", None)  # the full run replaces the quick one
    parts = [*_engine_tables(engines), *_ladder_table(groups.get("ladder", []))]
    parts += _sweep_table([rows for name, rows in groups.items() if name.startswith("sweep-")])
    parts += _growth_and_load(groups)
    if parts:
        commits: dict[str, set[str]] = {}
        for row in (row for group in groups.values() for row in group):
            commits.setdefault(_where(row), set()).add(row["commit"])
        machines = "; ".join(f"{where} {' '.join(sorted(made))}" for where, made in sorted(commits.items()))
        parts.append(f"Measured on: {machines}.")
        if engines:
            parts.append(f"![Pairs per second of each engine]({PICTURE.relative_to(PAGE.parent).as_posix()})")
    return "\n\n".join(parts) or "No results yet: run `make bench-quick` or `make bench`, then `make bench-table`."


def _engine_tables(engines: dict[str, list[Row]]) -> list[str]:
    """Return one heading and one table for each kind of pairs."""
    by_profile: dict[str, list[Row]] = {}
    for row in (row for rows in engines.values() for row in rows):
        by_profile.setdefault(row["profile"], []).append(row)
    return [
        "\n".join([f"### Pairs: {profile}\n", *COLUMNS, *map(engine_row, rows)]) for profile, rows in by_profile.items()
    ]


def _ladder_table(ladder: list[Row]) -> list[str]:
    if not ladder:
        return []
    heads = "| engine | pairs/s | × the first | peak memory | losses |"
    title = f"### One optimisation after another ({_case(ladder[0])})\n"
    return ["\n".join([title, heads, "|---|---|---|---|---|", *map(ladder_row, ladder)])]


def _sweep_table(sweeps: list[list[Row]]) -> list[str]:
    if not sweeps:
        return []
    heads = "| pairs, model, method, precision | engine | steps per beta | wall time | × TRL's defaults |"
    lines = [
        f"| {_case_and_precision(row)} | {LABELS[row['engine']]} | {row['n_steps']} | {_seconds(row['sweep_wall_s'])} "
        f"| {rows[0]['sweep_wall_s'] / row['sweep_wall_s']:.2f} |"
        for rows in sweeps
        for row in rows
    ]
    title = "### A sweep of four betas, from the raw file to evaluated models\n"
    return ["\n".join([title, heads, "|---|---|---|---|---|", *lines])]


def _growth_and_load(groups: dict[str, list[Row]]) -> list[str]:
    """Return how speed and memory depend on the number of pairs."""
    lines = []
    if growth := groups.get("growth"):
        rates_per_s = [row["pairs_per_s"] for row in growth]
        rates = ", ".join(f"{row['n_train']} pairs: {row['pairs_per_s']:.1f} pairs/s" for row in growth)
        lines.append(
            f"Training speed ({_case_and_precision(growth[0])}): {rates}; largest over smallest "
            f"{max(rates_per_s) / min(rates_per_s):.2f}."
        )
    for row in groups.get("load", ()):
        n = row["n_train"] + row["n_test"]
        lines.append(
            f"Loading and checking 100 000 pairs ({row['text_gib']:.2f} GiB): {row['load_s']:.1f} s, memory from "
            f"{row['rss_before_gib']:.2f} to {row['peak_rss_gib']:.2f} GiB ({n} pairs left in train and test)."
        )
    return ["### More pairs", *lines] if lines else []


def engine_row(row: Row) -> str:
    """Return a row of an engine table."""
    wall = _seconds(row["wall_s"])
    cells = [
        f"{row['model']}, {row['method']}, {row['dtype']}",
        LABELS[row["engine"]],
        f"{row['pairs_per_s']:.3g}",
        f"{row['speedup_over_baseline']:.2f}",
        f"{wall} ({row['n_train']} pairs)",
        f"{row['peak_rss_gib']:.2f} GiB",
        _per_pair(row, "backbone_tokens"),
        _per_pair(row, "head_rows"),
        _parity(row),
    ]
    return f"| {' | '.join(cells)} |"


def ladder_row(row: Row) -> str:
    """Return a row of the table of optimisations."""
    cells = [
        row["engine"],
        f"{row['pairs_per_s']:.3g}",
        f"{row['speedup_over_baseline']:.2f}",
        f"{row['peak_rss_gib']:.2f} GiB",
        _parity(row),
    ]
    return f"| {' | '.join(cells)} |"


def _parity(row: Row) -> str:
    deviation = "not finite" if row["max_deviation"] is None else f"{row['max_deviation']:.0e}"
    if row["engine"].startswith((BASELINE, "TRL's defaults")):
        return "baseline"
    return f"agree to {deviation}" if row["parity"] else f"**differ by {deviation}: does not count**"


def _per_pair(row: Row, key: str) -> str:
    return "-" if row[key] is None else f"{row[key] / row['counted_pairs']:.0f}"


def _case(row: Row) -> str:
    return f"{row['profile']}, {row['model']}, {row['method']}"


def _case_and_precision(row: Row) -> str:
    return f"{_case(row)}, {row['dtype']}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f} s"


def _where(row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"{row['machine']}, {row['date']}, {versions}, commit"


def draw(groups: dict[str, list[Row]], file: Path = PICTURE) -> None:
    """Draw a bar chart of pairs per second as SVG, one panel per case."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "posttrain"  # same results, same file
    from matplotlib import pyplot

    cases = {name: rows for name, rows in groups.items() if not name.startswith(OTHERS)}
    if not cases:
        return
    figure, axes = pyplot.subplots(
        len(cases), 1, figsize=(8, 0.7 + 1.5 * len(cases)), squeeze=False, layout="constrained"
    )
    for axis, rows in zip(axes[:, 0], cases.values(), strict=True):
        names = [LABELS[row["engine"]] for row in rows]
        bars = axis.barh(names, [row["pairs_per_s"] for row in rows], color=[COLOURS[row["engine"]] for row in rows])
        labels = [f"{row['pairs_per_s']:.3g}{'' if row['parity'] else ' (does not count)'}" for row in rows]
        axis.bar_label(bars, labels, padding=3)
        axis.set_title(_case_and_precision(rows[0]), loc="left", fontsize=10)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.1)
    axes[-1, 0].set_xlabel("pairs per second; higher is faster")
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def with_block(page: str, block: str) -> str:
    """Return the page with another block between the two marks."""
    assert BEGIN in page, f"{PAGE} has lost the mark of its benchmark tables"
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n\n{block}\n\n{END}", page)


if __name__ == "__main__":
    groups = read_results()
    draw(groups)
    PAGE.write_text(with_block(PAGE.read_text(encoding="utf-8"), table(groups)), encoding="utf-8")
    print(table(groups), file=sys.stdout)
