"""Everything that a run found out, in one record: what the report shows and what scripts read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.data.report import DataReport
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate import Promotion
from posttrain.evaluation.generations import Generations
from posttrain.evaluation.intervals import Result
from posttrain.models.checkpoint import Base


class Lineage(Result):
    """The data, the code, the settings and the parents of a run's models: enough to make them again."""

    run: str
    """Name of the pipeline run."""
    config: dict[str, Any]
    """The whole `RunConfig`."""
    data: str
    """sha256 of the preference pairs."""
    code: str
    """sha256 of the project's code and its main packages' versions."""
    versions: dict[str, str]
    """Of those packages."""
    base: Base
    models: dict[str, str]
    """Digest of each stage's checkpoint; a stage's parent is the one before it, the first one's is the base."""


class RunReport(Result):
    """The outcome of a run with all that led to it."""

    lineage: Lineage
    data: DataReport
    histories: dict[str, list[dict[str, float]]]
    """What each stage's trainer logged, one dict a logging step."""
    figures: Figures
    generations: Generations | None
    promotion: Promotion

    @property
    def verdict(self) -> str:
        """The decision and its reasons, in a line."""
        return f"{'Promoted' if self.promotion.promoted else 'Not promoted'}: {'; '.join(self.promotion.reasons)}"

    def save(self, folder: Path) -> None:
        """Writes `report.json` into a folder."""
        (folder / "report.json").write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> RunReport:
        """What `save` wrote."""
        return cls.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))
