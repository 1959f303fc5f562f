"""All results of a run of verifier_pipeline in one record, for the report and for scripts."""

from __future__ import annotations

from pathlib import Path

from posttrain.data.report import DataReport
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.intervals import Result
from posttrain.evaluation.verification.verifier_figures import VerifierFigures
from posttrain.reporting.run_report import Lineage


class VerifierReport(Result):
    """The outcome of a run and everything it is based on."""

    lineage: Lineage
    data: DataReport
    history: list[dict[str, float]]
    """Metrics that the trainer logged, one dict for each logging step."""
    figures: VerifierFigures
    promotion: Promotion

    @property
    def verdict(self) -> str:
        """Return the decision and its reasons in a line."""
        return f"{'Promoted' if self.promotion.promoted else 'Not promoted'}: {'; '.join(self.promotion.reasons)}"

    def save(self, folder: Path) -> None:
        """Write `report.json` into a folder."""
        (folder / "report.json").write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> VerifierReport:
        """Load what `save` wrote."""
        return cls.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
