"""The summary at the end of a run: a short table, the decision, and commands to see more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from posttrain.data.report import DataReport
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.figures import STAGES as ALL_STAGES
from posttrain.evaluation.figures import Figures, SetFigures, StageFigures
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.labels import ABSENT, ACCURACIES, METRICS, STAGES, percent, sample_size, words
from posttrain.evaluation.sweep import SweepOutcome
from posttrain.reporting.plain_console import PlainConsole
from posttrain.reporting.run_costs import RunCosts
from posttrain.reporting.sweep_report import render_sweep

INDENTED = ("normalised_accuracy", "implicit_accuracy")
"""Variants of the preference accuracy, shown indented below it."""
HISTOGRAMS = {"margins", "implicit_margins"}
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
FORMATS = ((False, 1), (False, 0), (True, 1), (True, 0))
"""From wide to narrow: whether the interval is on a line of its own, and its decimal places."""


@dataclass(frozen=True)
class Report:
    """The outcome of one run."""

    run: str
    figures: Figures
    promotion: Promotion
    data: DataReport
    benchmarks: BenchmarkFigures | None = None
    """None if the run has no benchmarks."""
    unchanged_since: str | None = None
    """The run that computed these figures, if this run had nothing new to train or to evaluate."""
    sweep: SweepOutcome | None = None
    """How the DPO checkpoint was chosen, if there was a sweep."""
    costs: RunCosts | None = None
    next_steps: tuple[str, ...] = ()
    """Commands and links, each a line."""

    def as_dict(self) -> dict[str, Any]:
        """Return the whole evaluation for scripts; None where a figure does not apply."""
        nothing = {"value": None, "low": None, "high": None}
        stages = {}
        for stage in _shown(self.figures):
            of_stage = self.figures.stages[stage]
            stages[stage] = {
                name: estimate.model_dump() if estimate else dict(nothing)
                for name, estimate in _estimates(of_stage).items()
            } | (of_stage.model_dump(include=HISTOGRAMS) if of_stage else {})
        return {
            "run": self.run,
            "unchanged_since": self.unchanged_since,
            **self.figures.model_dump(exclude={"stages"}),
            "stages": stages,
            "promotion": self.promotion.model_dump(),
            **({"benchmarks": self.benchmarks.model_dump()} if self.benchmarks else {}),
            "data": self.data.model_dump(),
            **({"sweep": self.sweep.model_dump()} if self.sweep else {}),
            **({"costs": self.costs.as_dict()} if self.costs else {}),
        }


def print_report(report: Report, console: Console | None = None) -> None:
    """Print a run's table, decision and next steps."""
    console = console or PlainConsole()
    if report.sweep:
        console.print(render_sweep(report.sweep), soft_wrap=False)
    console.print(_table(report, console), soft_wrap=False)
    for line in _lines(report):
        console.print(line, soft_wrap=False)
    for step in report.next_steps:
        console.print(step, soft_wrap=True, highlight=False, markup=False)  # a broken link or command cannot be pasted


def _table(report: Report, console: Console) -> Table:
    """Return the table in the first format that fits, so that neither names nor figures are cut."""
    unlimited = console.options.update(max_width=10_000)
    for is_stacked, digits in FORMATS:
        table = _formatted(report, is_stacked, digits)
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            break
    return table


def _formatted(report: Report, is_stacked: bool, digits: int) -> Table:
    figures = report.figures
    title = f"\n{report.run}: {sample_size(figures, 'held-out ')}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"in %, {figures.confidence:.0%} intervals", overflow="fold")
    shown = _shown(figures)
    for stage in shown:
        table.add_column(STAGES[stage], justify="right", no_wrap=True)

    def cells(of: SetFigures, name: str) -> list[str]:
        return formatted(_estimates(of.stages[stage]).get(name) for stage in shown)

    def formatted(estimates: Iterable[Estimate | None]) -> list[str]:
        texts = [percent(estimate, digits) for estimate in estimates]
        return [text.replace(" (", "\n").rstrip(")") for text in texts] if is_stacked else texts

    for name in ACCURACIES:
        row = cells(figures, name)
        if any(cell != ABSENT for cell in row):
            table.add_row(f"{'  ' if name in INDENTED else ''}{METRICS[name].short}", *row)
    for name, of_set in figures.sets.items():
        table.add_row(f"{name} ({sample_size(of_set)})", *cells(of_set, "likelihood_accuracy"))
    for name, task in report.benchmarks.tasks.items() if report.benchmarks else ():
        scores = {stage: found.score for stage, found in task.stages.items()}
        table.add_row(f"{name} ({task.n_items} items)", *formatted(scores.get(stage) for stage in shown))
    return table


def _lines(report: Report) -> Iterator[Text]:
    figures, data = report.figures, report.data
    if report.unchanged_since:
        yield Text("Unchanged: ", style="bold").append(
            f"nothing was trained; the figures are those of run {report.unchanged_since}", style="not bold"
        )
    yield Text(_other_metrics(figures))
    yield Text(f"Data: {data.n_read} rows read, {data.n_kept} kept, {data.n_dropped} dropped{_reasons(data.dropped)}")
    if any(figures.cut.values()):
        yield Text("Test pairs: " + ", ".join(f"{n} {words(name)}" for name, n in figures.cut.items() if n))
    if data.ceiling is not None:
        yield Text(
            f"Ceiling: the true reward itself is expected to agree with {data.ceiling:.1%} of these noisy labels"
        )
    if report.costs:
        yield Text(f"Cost: {report.costs.line()}")
    for finding in figures.findings:
        line = Text(f"{finding.severity.capitalize()}: ", style=STYLES[finding.severity])
        yield line.append(f"{finding.title}. What to do: {finding.advice}", style="not bold default")
    if not figures.findings:
        yield Text("No issues found")
    verdict = Text("Promoted: " if report.promotion.promoted else "Not promoted: ", style="bold")
    yield verdict.append("; ".join(report.promotion.reasons), style="not bold")


def _shown(figures: Figures) -> list[str]:
    """Return the stages, with the champion only if there is one."""
    return [stage for stage in ALL_STAGES if stage != "champion" or figures.stages[stage]]


def _estimates(figures: StageFigures | None) -> dict[str, Estimate | None]:
    return {name: getattr(figures, name, None) for name in StageFigures.model_fields if name not in HISTOGRAMS}


def _other_metrics(figures: Figures) -> str:
    """Return the metrics other than accuracies, as one line."""
    there = {STAGES[stage]: found for stage in _shown(figures) if (found := figures.stages[stage])}
    perplexities = ", ".join(f"{name} {found.chosen_perplexity.value:.3g}" for name, found in there.items())
    parts = [f"{METRICS['chosen_perplexity'].name} {perplexities}"]
    if forgetting := figures.forgetting:
        losses = ", ".join(f"{STAGES[stage]} {loss.value:.3g}" for stage, loss in forgetting.losses.items())
        parts.append(f"loss on held-out SFT data {losses} nats per token")
    if (dpo := figures.stages["dpo"]) and dpo.kl_nats_per_token:
        parts.append(f"KL to SFT {dpo.kl_nats_per_token.value:.2g} nats per token")
    if figures.calibration:
        parts.append(f"calibration error {figures.calibration.ece.value:.1%}")
    parts.append(f"always choosing the longer response {figures.length.prefer_longer.value:.1%}")
    return "Other metrics: " + "; ".join(parts)


def _reasons(dropped: dict[str, int]) -> str:
    counted = ", ".join(f"{count} {words(reason)}" for reason, count in dropped.items() if count)
    return f" ({counted})" if counted else ""
