"""The summary at the end of a run of verifier_pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.evaluation.labels import percent, plain, points, sample_size
from posttrain.reporting.plain_console import PlainConsole
from posttrain.reporting.verifier_report import VerifierReport


@dataclass(frozen=True)
class VerifierSummary:
    """The outcome of one run, and how to see more of it."""

    report: VerifierReport
    unchanged_since: str | None = None
    """The run that computed these figures, if this run had nothing new to train or to evaluate."""
    next_steps: tuple[str, ...] = ()
    """Commands and links, each a line."""

    def as_dict(self) -> dict[str, Any]:
        """Return the whole evaluation for scripts."""
        report = self.report
        return {
            "run": report.lineage.run,
            "unchanged_since": self.unchanged_since,
            **report.figures.model_dump(),
            "promotion": report.promotion.model_dump(),
            "data": report.data.model_dump(),
        }


def print_verifier(summary: VerifierSummary, console: Console | None = None) -> None:
    """Print a verifier's figures, the decision and next steps."""
    console = console or PlainConsole()
    report = summary.report
    figures = report.figures
    title = f"\n{report.lineage.run}: {sample_size(figures, 'held-out ')}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"{figures.confidence:.0%} intervals", overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    for row in _rows(report):
        table.add_row(*row)
    console.print(table, soft_wrap=False)
    if summary.unchanged_since:
        console.print(Text(f"Unchanged: nothing was trained; the figures are those of run {summary.unchanged_since}"))
    data = report.data
    console.print(Text(f"Data: {data.n_read} rows read, {data.n_kept} kept, {data.n_dropped} dropped"))
    verdict = Text("Promoted: " if report.promotion.promoted else "Not promoted: ", style="bold")
    console.print(verdict.append("; ".join(report.promotion.reasons), style="not bold"), soft_wrap=False)
    for step in summary.next_steps:
        console.print(step, soft_wrap=True, highlight=False, markup=False)  # a broken link or command cannot be pasted


def _rows(report: VerifierReport) -> Iterator[tuple[str, str]]:
    figures = report.figures
    yield "pairwise accuracy, %", percent(figures.accuracy)
    if figures.champion_accuracy:
        yield "  of the champion, %", percent(figures.champion_accuracy)
    yield "  of length alone, %", percent(figures.length.baseline)
    yield "gain, points", points(figures.gain)
    if figures.true_agreement:
        yield "agreement with the true reward, %", percent(figures.true_agreement)
    yield "AUC of single answers, %", percent(figures.absolute.auc)
    yield "accuracy of single answers, %", percent(figures.absolute.accuracy)
    yield "calibration error, %", percent(figures.calibration.ece)
    for curve, what in ((figures.best_of_sampled, "true reward"), (figures.best_of_held_out, "share of right answers")):
        if len(curve) > 1:
            last = curve[-1]
            yield f"gain of the best of {last.n}, {what}", plain(last.gain)
