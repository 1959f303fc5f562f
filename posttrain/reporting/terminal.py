"""What a person reads at the end of a run: a short table, the decision, and where to look next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from posttrain.data.report import DataReport
from posttrain.evaluation.figures import STAGES, Figures, StageFigures
from posttrain.evaluation.gate import Promotion
from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.sweep import SweepOutcome
from posttrain.reporting.sweep_report import render_sweep

ROWS = {
    "likelihood_accuracy": "preference accuracy",
    "normalised_accuracy": "  per token",
    "implicit_accuracy": "  implicit reward",
    "true_agreement": "true agreement",
}
HISTOGRAMS = {"margins", "implicit_margins"}
NAMES = {"base": "base", "sft": "SFT", "dpo": "DPO", "champion": "champion"}
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Report:
    """The outcome of one run."""

    run: str
    figures: Figures
    promotion: Promotion
    data: DataReport
    unchanged_since: str | None = None
    """The run whose figures these are, where this one has found nothing new to train or to judge."""
    sweep: SweepOutcome | None = None
    """How the DPO checkpoint was chosen, where it was."""
    next_steps: tuple[str, ...] = ()
    """Commands and links for where to look next, each a line."""

    def as_dict(self) -> dict[str, Any]:
        """The whole evaluation for scripts; None where a figure does not apply."""
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
            "data": self.data.model_dump(),
            **({"sweep": self.sweep.model_dump()} if self.sweep else {}),
        }


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints a run's table, decision and next steps."""
    console = console or Console()
    if report.sweep:
        console.print(render_sweep(report.sweep), soft_wrap=False)
    console.print(_render(report), soft_wrap=False)
    for line in report.next_steps:
        console.print(line, soft_wrap=True, highlight=False, markup=False)  # a link broken in two does not work


def _render(report: Report) -> Group:
    figures, data = report.figures, report.data
    title = f"\n{report.run}: {figures.n_pairs} held-out pairs"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"in %, {figures.confidence:.0%} intervals")
    shown = _shown(figures)
    digits = 1 if len(shown) < 4 else 0  # of the intervals, so that a fourth column fits into 80 characters
    for stage in shown:
        table.add_column(NAMES[stage], justify="right", no_wrap=True)
    for name, label in ROWS.items():
        cells = [_cell(_estimates(figures.stages[stage]).get(name), digits) for stage in shown]
        if any(cell != "-" for cell in cells):
            table.add_row(label, *cells)
    for name, found in figures.sets.items():
        cells = [_cell(_estimates(found.stages[stage]).get("likelihood_accuracy"), digits) for stage in shown]
        table.add_row(f"{name} ({found.n_pairs} pairs)", *cells)
    lines = [
        *_unchanged(report),
        Text(_beside(figures)),
        Text(f"Data: {data.n_read} rows read, {data.n_kept} kept, {data.n_dropped} dropped{_reasons(data.dropped)}"),
    ]
    if any(figures.cut.values()):
        lines.append(
            Text("Test pairs: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in figures.cut.items() if n))
        )
    if data.ceiling is not None:
        lines.append(
            Text(f"Ceiling: the true reward itself is expected to agree with {data.ceiling:.1%} of these noisy labels")
        )
    for finding in figures.findings:
        line = Text(f"{finding.severity.capitalize()}: ", style=STYLES[finding.severity])
        line.append(f"{finding.title}. What to do: {finding.advice}", style="not bold default")
        lines.append(line)
    verdict = Text("Promoted: " if report.promotion.promoted else "Not promoted: ", style="bold")
    verdict.append("; ".join(report.promotion.reasons), style="not bold")
    return Group(table, *lines, verdict)


def _unchanged(report: Report) -> Iterator[Text]:
    if report.unchanged_since:
        yield Text("Unchanged: ", style="bold").append(
            f"nothing was trained; the figures are those of run {report.unchanged_since}", style="not bold"
        )


def _shown(figures: Figures) -> list[str]:
    """The stages, the champion only where there is one."""
    return [stage for stage in STAGES if stage != "champion" or figures.stages[stage]]


def _estimates(figures: StageFigures | None) -> dict[str, Estimate | None]:
    return {name: getattr(figures, name, None) for name in StageFigures.model_fields if name not in HISTOGRAMS}


def _beside(figures: Figures) -> str:
    """What stands beside accuracy, in a line."""
    there = {NAMES[stage]: found for stage in _shown(figures) if (found := figures.stages[stage])}
    parts = [f"perplexity on chosen {', '.join(f'{n} {f.chosen_perplexity.value:.3g}' for n, f in there.items())}"]
    if (dpo := figures.stages["dpo"]) and dpo.kl_nats_per_token:
        parts.append(f"KL to SFT {dpo.kl_nats_per_token.value:.2g} nats a token")
    if figures.calibration:
        parts.append(f"calibration error {figures.calibration.ece:.1%}")
    parts.append(f"preferring the longer response is right on {figures.length.prefer_longer.value:.1%}")
    return "Beside: " + "; ".join(parts)


def _cell(estimate: Estimate | None, digits: int) -> str:
    return estimate.in_percent(digits) if estimate else "-"


def _reasons(dropped: dict[str, int]) -> str:
    counted = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items() if count)
    return f" ({counted})" if counted else ""
