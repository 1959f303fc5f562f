"""The outcome of a run in a few figures, which the run stores for the history of its model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from posttrain.evaluation.gate.looks import Look
from posttrain.evaluation.intervals import Estimate
from posttrain.reporting.run_costs import RunCosts
from posttrain.reporting.run_report import RunReport

RECORD = "record"
"""Name of the metadata entry of a run."""
Outcome = Literal["promoted", "refused", "unchanged"]


class RunRecord(BaseModel):
    """The outcome of one run. A run is unchanged if there was no new model to judge; it has the figures of an earlier one."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    judged_in: str
    """Name of the run that judged the model."""
    stage: str
    """The newest stage, which was judged."""
    opponent: str
    """What it was compared with: `champion`, `sft` or `base`."""
    accuracy: Estimate
    """Preference accuracy of the newest stage."""
    gain: Estimate
    """Its accuracy minus that of the opponent."""
    win_rate: Estimate | None
    """Of its answers over the opponent's, by the judge or by the demo's true reward."""
    n_rows: int
    """Rows of the data that are kept, in all splits."""
    n_test_pairs: int
    test_prompts: str
    """Digest of the test prompts."""
    model: str
    """Digest of the newest stage."""
    n_looks: int = 0
    """Looks of the gate at these test prompts so far."""
    looks_used: float = 0.0
    """The share of the planned looks that they are."""
    reasons: list[str]
    """Of the verdict."""
    costs: RunCosts

    def line(self) -> str:
        """Return the outcome in a line."""
        if self.outcome == "unchanged":
            return f"unchanged: there was no new model to judge; the verdict is that of run {self.judged_in}"
        return f"{self.outcome}: {'; '.join(self.reasons)}. {self.costs.line()}"


def record_of(report: RunReport, costs: RunCosts, judged_in: str | None, looks: Look) -> RunRecord:
    """Return the record of a run.

    Args:
        judged_in: the earlier run whose verdict this is; None if this run had a new model to judge.
        looks: of the gate at the test prompts so far.
    """
    figures, promotion = report.figures, report.promotion
    of_newest, contest = figures.stages[figures.newest], f"{figures.newest}_vs_{figures.opponent}"
    assert of_newest is not None
    answers = report.generations.comparisons.get(contest) if report.generations else None
    rates = list(answers.win_rates.values()) if answers else []
    gain = figures.comparisons[contest].gain
    return RunRecord(
        outcome="unchanged" if judged_in else "promoted" if promotion.promoted else "refused",
        judged_in=judged_in or report.lineage.run,
        stage=figures.newest,
        opponent=figures.opponent,
        accuracy=of_newest.likelihood_accuracy,
        gain=Estimate(value=gain.value, low=gain.low, high=gain.high),
        win_rate=rates[0].share if rates else None,
        n_rows=report.data.n_kept,
        n_test_pairs=figures.n_pairs,
        test_prompts=figures.digests.get("test_prompts", ""),
        model=figures.digests[figures.newest],
        n_looks=looks.number,
        looks_used=looks.used,
        reasons=promotion.reasons,
        costs=costs,
    )
