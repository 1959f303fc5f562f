"""All results of a run in one record, for the report and for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.data.report import DataReport
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.intervals import Result
from posttrain.models.checkpoint import Base
from posttrain.reporting.run_costs import RunCosts


class Lineage(Result):
    """Data, code, settings and parents of a run's models: enough to train them again."""

    run: str
    """Name of the pipeline run."""
    config: dict[str, Any]
    """The whole `RunConfig`."""
    data: str
    """sha256 of the preference pairs."""
    code: str
    """sha256 of the project's code and its main packages' versions."""
    versions: dict[str, str]
    """Versions of these packages."""
    base: Base
    models: dict[str, str]
    """Digest of each stage's checkpoint. The parent of SFT is the base, the parent of DPO is SFT."""


class RunReport(Result):
    """The outcome of a run and everything it is based on."""

    lineage: Lineage
    data: DataReport
    histories: dict[str, list[dict[str, float]]]
    """Metrics that the trainer of each stage logged, one dict for each logging step."""
    figures: Figures
    generations: Generations | None
    benchmarks: BenchmarkFigures | None = None
    """None if the run has no benchmarks."""
    promotion: Promotion
    costs: RunCosts | None = None
    """Up to the report itself, without the steps that were taken from the cache."""

    @property
    def verdict(self) -> str:
        """Return the decision and its reasons in a line."""
        return f"{'Promoted' if self.promotion.promoted else 'Not promoted'}: {'; '.join(self.promotion.reasons)}"

    def save(self, folder: Path) -> None:
        """Write `report.json` into a folder."""
        (folder / "report.json").write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> RunReport:
        """Load what `save` wrote."""
        return cls.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
