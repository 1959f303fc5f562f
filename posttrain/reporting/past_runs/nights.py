"""The history of a model: its runs with what each has found, and the changes of the model in production."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from posttrain.evaluation.intervals import Estimate
from posttrain.evaluation.labels import ABSENT, STAGES, points
from posttrain.reporting.past_runs.run_record import RunRecord
from posttrain.reporting.run_costs import RunCosts, duration

UNCHANGED, TAKEN_BACK = "unchanged", "taken back"


@dataclass(frozen=True)
class Night:
    """A run of a model, or a change of the model in production by hand."""

    name: str
    """Of the run; of a change by hand, the version that was taken out of production."""
    at: datetime
    """In UTC."""
    outcome: str
    """`promoted`, `refused`, `unchanged`, `taken back`, or the status of a run without a verdict, such as `failed`."""
    record: RunRecord | None = None
    """None if the run has no verdict."""
    costs: RunCosts | None = None
    note: str = ""
    """Why it ended so: the promoted version, the failed step, or the reason of a person."""


@dataclass(frozen=True)
class ModelHistory:
    """All runs of a model and changes of its version in production, oldest first."""

    model: str
    nights: list[Night]
    champion: str | None = None
    """Name of the version in production."""
    complete: bool = True
    """Whether all runs are listed."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for scripts."""
        nights = [
            {
                "name": night.name,
                "at": night.at.isoformat(timespec="seconds"),
                "outcome": night.outcome,
                "note": night.note,
                "record": night.record.model_dump(exclude={"costs"}) if night.record else None,
                "costs": night.costs.as_dict() if night.costs else None,
            }
            for night in self.nights
        ]
        return {"model": self.model, "champion": self.champion, "complete": self.complete, "nights": nights}

    def summary(self) -> list[str]:
        """Return how many runs there were, what is in production, and how many looks at the test prompts are spent."""
        counts: dict[str, int] = {}
        for night in self.nights:
            counts[night.outcome] = counts.get(night.outcome, 0) + 1
        n_runs = sum(n for outcome, n in counts.items() if outcome != TAKEN_BACK)
        which = "" if self.complete else "newest "
        lines = [f"{n_runs} {which}run{'s' * (n_runs != 1)}: {', '.join(f'{n} {word}' for word, n in counts.items())}."]
        lines.append(f"In production: {self.champion or 'no version'}.")
        if (last := next((night.record for night in reversed(self.nights) if night.record), None)) and last.n_looks:
            lines.append(
                f"Looks at today's test prompts: {last.n_looks}, which is {last.looks_used:.0%} of those planned."
            )
        if total := _total(self.nights):
            lines.append(f"Cost of these runs: {total.line()}.")
        return lines


@dataclass(frozen=True)
class NightRow:
    """One row of the table: a night, or several unchanged ones in a row."""

    night: Night
    n_nights: int
    growth: int | None
    """Rows that the data has more than in the verdict before; None where there is none."""

    def cells(self) -> dict[str, str]:
        """Return the text of every column, by its header."""
        night, record = self.night, self.night.record
        judged = record if record and night.outcome != UNCHANGED else None
        costs = night.costs
        return {
            "when, UTC": f"{night.at:%Y-%m-%d %H:%M}",
            "outcome": night.outcome if self.n_nights == 1 else f"{self.n_nights} {night.outcome}",
            "accuracy": _share(judged.accuracy) if judged else ABSENT,
            "gain": points(judged.gain) if judged else ABSENT,
            "over": STAGES.get(judged.opponent, judged.opponent) if judged else ABSENT,
            "win rate": _share(judged.win_rate) if judged else ABSENT,
            "rows": f"{record.n_rows:,}" + (f" ({self.growth:+,})" if self.growth else "") if record else ABSENT,
            "looks": str(record.n_looks) if record and record.n_looks else ABSENT,
            "time": duration(costs.seconds) if costs else ABSENT,
            "GPU time": duration(costs.gpu_seconds) if costs and costs.gpu_seconds else ABSENT,
            "cost": f"{costs.money:,.2f} {costs.currency}" if costs and costs.money is not None else ABSENT,
        }


def table_rows(nights: Sequence[Night]) -> list[NightRow]:
    """Return the rows of the table: unchanged runs that follow each other share one, with the time of the last and their costs."""
    rows: list[NightRow] = []
    known: int | None = None
    for night in nights:
        growth = night.record.n_rows - known if night.record and known is not None else None
        known = night.record.n_rows if night.record else known
        before = rows[-1] if rows else None
        if before and night.outcome == before.night.outcome == UNCHANGED and not growth:
            together = Night(night.name, night.at, UNCHANGED, night.record, _total([before.night, night]))
            rows[-1] = NightRow(together, before.n_nights + 1, before.growth)
        else:
            rows.append(NightRow(night, 1, growth))
    return rows


def used_columns(rows: Sequence[NightRow], names: Sequence[str]) -> list[str]:
    """Return the columns in which at least one row has a value."""
    cells = [row.cells() for row in rows]
    return [name for name in names if any(of_row[name] != ABSENT for of_row in cells)]


def _share(estimate: Estimate | None) -> str:
    return ABSENT if estimate is None else f"{100 * estimate.value:.1f}"


def _total(nights: Sequence[Night]) -> RunCosts | None:
    """Return the sum of what runs have used; money at the newest price."""
    costs = [night.costs for night in nights if night.costs]
    if not costs:
        return None
    steps = {f"{i} {name}": step for i, cost in enumerate(costs) for name, step in cost.steps.items()}
    return costs[-1].model_copy(update={"seconds": sum(cost.seconds for cost in costs), "steps": steps})
