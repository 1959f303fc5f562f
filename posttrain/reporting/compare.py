"""Compare two runs: which settings differ, and whether the model of one is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.config import EvaluationSection
from posttrain.config.flatten import flatten
from posttrain.evaluation.clustered.clusters import Clusters
from posttrain.evaluation.figures import Comparison
from posttrain.evaluation.labels import ABSENT, ACCURACIES, ANSWERS, METRICS, percent, plain, points
from posttrain.evaluation.statistics import CONVERSATION, compare, correct
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
    contest: Comparison | None
    """The second run's newest model against the first's on the same pairs; None if the pairs differ."""


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
        contest=_contest(a, a_pairs, b, b_pairs),
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
    if found.contest is None:
        console.print("The test pairs are not the same, so the models cannot be compared.")
    else:
        contest = found.contest
        console.print(
            Text(
                f"Gain in preference accuracy of the second model over the first, on the same pairs: {points(contest.gain)} "
                f"points; {contest.n_gained} pairs gained, {contest.n_lost} lost, "
                f"{contest.gain.n_prompts} prompts, p = {contest.p_value:.2g}"
            )
        )


def _settings(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[str, str]]:
    a, b = flatten(first), flatten(second)
    return {
        key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    }


def _answers(report: RunReport, name: str) -> str:
    stages = report.generations.stages if report.generations else {}
    return plain(getattr(stages[report.figures.newest], name)) if report.figures.newest in stages else ABSENT


def _contest(a: RunReport, a_pairs: pa.Table, b: RunReport, b_pairs: pa.Table) -> Comparison | None:
    """Return the comparison of the two newest models, on the pairs that neither run left out for their length."""
    if a.figures.digests["preferences"] != b.figures.digests["preferences"]:
        return None
    scored = [
        dict(zip(pairs["id"].to_pylist(), correct(_margins(pairs, report.figures.newest)), strict=True))
        for report, pairs in ((a, a_pairs), (b, b_pairs))
    ]
    shared = [row for row in scored[0] if row in scored[1]]
    if not shared:
        return None
    section = EvaluationSection(confidence=b.figures.confidence, seed=b.figures.seed)
    older, newer = (np.array([scores[row] for row in shared]) for scores in scored)
    column = CONVERSATION if CONVERSATION in b_pairs.column_names else "prompt"
    keys = dict(zip(b_pairs["id"].to_pylist(), b_pairs[column].to_pylist(), strict=True))
    return compare(newer, older, section, Clusters.of([keys[row] for row in shared]))


def _margins(pairs: pa.Table, stage: str) -> np.ndarray:
    chosen, rejected = (pairs[f"{stage}_{side}_logps"].to_numpy() for side in ("chosen", "rejected"))
    return np.asarray(chosen - rejected)
