"""What a person reads at the end of a run: a short table, the decision, and where to look next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from posttrain.data.report import DataReport
from posttrain.evaluate import STAGES, Estimate, Figures
from posttrain.promotion import Promotion
from posttrain.sweep import SweepOutcome
from posttrain.sweep_report import render_sweep

ROWS = {
    "likelihood_accuracy": "preference accuracy",
    "normalised_accuracy": "  per token",
    "implicit_accuracy": "  implicit reward",
    "true_agreement": "true agreement",
}
NAMES = {"base": "base", "sft": "SFT", "dpo": "DPO"}


@dataclass(frozen=True)
class Report:
    """The outcome of one run."""

    run: str
    figures: Figures
    promotion: Promotion
    data: DataReport
    sweep: SweepOutcome | None = None
    """How the DPO checkpoint was chosen, where it was."""
    next_steps: tuple[str, ...] = ()
    """Commands and links for where to look next, each a line."""

    def as_dict(self) -> dict[str, Any]:
        """The whole evaluation for scripts; None where a figure does not apply."""
        nothing = {"value": None, "low": None, "high": None}
        stages = {
            stage: {
                name: estimate.model_dump() if estimate else dict(nothing)
                for name, estimate in _estimates(self.figures.stages[stage]).items()
            }
            for stage in STAGES
        }
        return {
            "run": self.run,
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
    table.add_column(f"in %, {figures.confidence:.0%} intervals", no_wrap=True)
    for stage in STAGES:
        table.add_column(NAMES[stage], justify="right", no_wrap=True)
    for name, label in ROWS.items():
        cells = [_cell(_estimates(figures.stages[stage]).get(name)) for stage in STAGES]
        if any(cell != "-" for cell in cells):
            table.add_row(label, *cells)
    lines = [
        Text(f"Data: {data.n_read} rows read, {data.n_kept} kept, {data.n_dropped} dropped{_reasons(data.dropped)}")
    ]
    if any(figures.cut.values()):
        lines.append(
            Text("Test pairs: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in figures.cut.items() if n))
        )
    if data.ceiling is not None:
        lines.append(
            Text(f"Ceiling: the true reward itself is expected to agree with {data.ceiling:.1%} of these noisy labels")
        )
    verdict = Text("Promoted: " if report.promotion.promoted else "Not promoted: ", style="bold")
    verdict.append("; ".join(report.promotion.reasons), style="not bold")
    return Group(table, *lines, verdict)


def _estimates(figures: Any) -> dict[str, Estimate | None]:
    names = [*ROWS, "likelihood_margin_nats", "implicit_margin_nats", "chosen_logps_nats"]
    return {name: getattr(figures, name, None) for name in names}


def _cell(estimate: Estimate | None) -> str:
    return estimate.in_percent() if estimate else "-"


def _reasons(dropped: dict[str, int]) -> str:
    counted = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items() if count)
    return f" ({counted})" if counted else ""
