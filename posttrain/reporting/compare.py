"""Compare two runs: which settings differ, and whether the model of one is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.config.flatten import flatten
from posttrain.evaluation.labels import ABSENT, ACCURACIES, ANSWERS, METRICS, percent, plain, points
from posttrain.reporting.past_runs.flips import Flips, flips_between
from posttrain.reporting.plain_console import PlainConsole
from posttrain.reporting.run_report import RunReport

FIGURES = {
    **{name: (f"{METRICS[name].name}, %", percent) for name in ACCURACIES},
    **{name: (METRICS[name].name, plain) for name in ("chosen_perplexity", "kl_nats_per_token")},
}
"""By the field of `StageFigures`: name and format."""


@dataclass(frozen=True)
class Difference:
    """Differences between two runs."""

    runs: tuple[str, str]
    settings: dict[str, tuple[str, str]]
    """By key: the values in the first and the second run; `-` where a run has none."""
    origins: dict[str, bool]
    """For `data`, `code`, `base` and `packages`: whether they are the same in both runs."""
    figures: dict[str, tuple[str, str]]
    """Of the newest model of each run."""
    findings: tuple[list[str], list[str]]
    """Findings of only one of the runs."""
    decisions: tuple[str, str]
    flips: Flips
    """The second run's newest model against the first's on the test pairs that both runs have."""


def compare_runs(first: tuple[RunReport, pa.Table], second: tuple[RunReport, pa.Table]) -> Difference:
    """Return how the second run differs from the first.

    Args:
        first, second: a report, and the rows of its evaluation.
    """
    (a, a_pairs), (b, b_pairs) = first, second
    rules = [{f"{f.severity}: {f.title}" for f in report.figures.findings} for report in (a, b)]
    stages = [report.figures.stages[report.figures.newest] for report in (a, b)]
    figures = {
        label: (show(getattr(stages[0], name)), show(getattr(stages[1], name)))
        for name, (label, show) in FIGURES.items()
    }
    for name, metric in ANSWERS.items():
        figures[f"answers: {metric.short}"] = (_answers(a, name), _answers(b, name))
    return Difference(
        runs=(a.lineage.run, b.lineage.run),
        settings=_settings(a.lineage.config, b.lineage.config),
        origins={
            "data": a.lineage.data == b.lineage.data,
            "code": a.lineage.code == b.lineage.code,
            "base": a.lineage.base.digest == b.lineage.base.digest,
            "packages": a.lineage.versions == b.lineage.versions,
        },
        figures={label: values for label, values in figures.items() if values != (ABSENT, ABSENT)},
        findings=(sorted(rules[0] - rules[1]), sorted(rules[1] - rules[0])),
        decisions=(a.verdict, b.verdict),
        flips=flips_between(a, a_pairs, b, b_pairs),
    )


def print_difference(found: Difference, console: Console | None = None) -> None:
    """Print the difference as tables."""
    console = console or PlainConsole()
    same = [name for name, is_same in found.origins.items() if is_same]
    other = [name for name, is_same in found.origins.items() if not is_same]
    console.print(Text(f"\nSame: {', '.join(same) or 'nothing'}. Different: {', '.join(other) or 'nothing'}."))
    for title, rows in (("setting", found.settings), ("newest model", found.figures)):
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for header in (title, *found.runs):
            table.add_column(Text(header), overflow="fold")
        for name, values in rows.items():
            table.add_row(*(Text(text) for text in (name, *values)))
        if rows:
            console.print(table)
    for run, rules in zip(found.runs, found.findings, strict=True):
        for rule in rules:
            console.print(Text(f"Only in {run}: {rule}"))
    for run, decision in zip(found.runs, found.decisions, strict=True):
        console.print(Text(f"{run}: {decision}"))
    _print_flips(found, console)


def _print_flips(found: Difference, console: Console) -> None:
    """Print how the newest models do on the same pairs, which pairs flipped, and how they do on the others."""
    flips = found.flips
    if flips.contest is None:
        console.print(Text("No test pair is in both runs, so the models cannot be compared on the same pairs."))
    else:
        gain = flips.contest.gain
        console.print(
            Text(
                f"Gain in preference accuracy of the second model over the first, on the {gain.n_pairs} test pairs of both runs: "
                f"{points(gain)} points; {flips.contest.n_gained} pairs gained, {flips.contest.n_lost} lost, {gain.n_prompts} "
                f"prompts, p = {flips.contest.p_value:.2g}"
            )
        )
    for which, run, accuracy in (
        ("first", found.runs[0], flips.first_only),
        ("second", found.runs[1], flips.second_only),
    ):
        if accuracy:
            console.print(
                Text(f"Accuracy of the {which} model on the pairs that only {run} has, in %: {percent(accuracy)}")
            )
    if not flips.same_pairs or len(flips.by_source) > 1:
        console.print(_source_table(flips))
    for word, pairs in (("Gained", flips.gained), ("Lost", flips.lost)):
        for pair in pairs:
            console.print(Text(f"{word}: {pair}", overflow="ellipsis"), no_wrap=True)


def _source_table(flips: Flips) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("source", overflow="fold")
    for header in ("pairs\nin both", "gained", "lost", "only\nfirst", "only\nsecond", "rows"):
        table.add_column(header, justify="right")
    for name, of_source in flips.by_source.items():
        before, after = of_source.rows
        rows = f"{after:,} ({after - before:+,})" if after != before else f"{after:,}"
        counts = (of_source.n_shared, of_source.n_gained, of_source.n_lost, of_source.n_first, of_source.n_second)
        table.add_row(Text(name), *map(str, counts), rows)
    return table


def _settings(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[str, str]]:
    a, b = flatten(first), flatten(second)
    return {
        key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    }


def _answers(report: RunReport, name: str) -> str:
    stages = report.generations.stages if report.generations else {}
    return plain(getattr(stages[report.figures.newest], name)) if report.figures.newest in stages else ABSENT
