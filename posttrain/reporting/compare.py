"""Two runs beside each other: which settings differ, and whether one's model is better."""

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
from posttrain.evaluation.figures import Comparison
from posttrain.evaluation.statistics import compare, correct
from posttrain.reporting.run_page import percent, plain
from posttrain.reporting.run_report import RunReport

FIGURES = {
    "likelihood_accuracy": ("preference accuracy, %", percent),
    "normalised_accuracy": ("  per token, %", percent),
    "implicit_accuracy": ("  implicit reward, %", percent),
    "true_agreement": ("true agreement, %", percent),
    "chosen_perplexity": ("perplexity on chosen", plain),
    "kl_nats_per_token": ("KL to SFT, nats a token", plain),
}
ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """What two runs do not have in common."""

    runs: tuple[str, str]
    settings: dict[str, tuple[str, str]]
    """By the setting's key: its values in the first and the second run; `-` where it has none."""
    origins: dict[str, bool]
    """Of `data`, `code`, `base`, `packages`: whether they are the same."""
    figures: dict[str, tuple[str, str]]
    """Of the newest model of each run."""
    findings: tuple[list[str], list[str]]
    """Rules that spoke in one of the runs alone."""
    decisions: tuple[str, str]
    contest: Comparison | None
    """The second run's newest model against the first's, on the same pairs; None where the pairs are not the same."""


def compare_runs(first: tuple[RunReport, pa.Table], second: tuple[RunReport, pa.Table]) -> Difference:
    """How the second run differs from the first.

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
    for name in ("stop_rate", "n_tokens", "repetition", "true_reward"):
        label = f"answers: {name.replace('_', ' ').removeprefix('n ')}"
        figures[label] = (_answers(a, name), _answers(b, name))
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
    """Prints it as tables."""
    console = console or Console()
    same = [name for name, is_same in found.origins.items() if is_same]
    other = [name for name, is_same in found.origins.items() if not is_same]
    console.print(Text(f"\nthe same: {', '.join(same) or 'nothing'}; different: {', '.join(other) or 'nothing'}"))
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
        console.print("The test pairs are not the same, so nothing can be said of one model against the other.")
    else:
        gain, contest = found.contest.gain, found.contest
        console.print(
            Text(
                f"On the same pairs the second orders {100 * gain.value:+.1f} points more right ({100 * gain.low:+.1f} to "
                f"{100 * gain.high:+.1f}; {contest.n_gained} gained, {contest.n_lost} lost, p = {contest.p_value:.2g})"
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
    """McNemar's test of the two newest models; a pair that one run left out for its length is left out here."""
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
    return compare(newer, older, section)


def _margins(pairs: pa.Table, stage: str) -> np.ndarray:
    chosen, rejected = (pairs[f"{stage}_{side}_logps"].to_numpy() for side in ("chosen", "rejected"))
    return np.asarray(chosen - rejected)
