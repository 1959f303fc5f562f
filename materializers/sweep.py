"""Sweeps: the scores of each point, and the outcome with its picture."""

from html import escape
from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from materializers.records import RecordMaterializer
from posttrain.config import point_label
from posttrain.evaluation.sweep import SweepOutcome, SweepPoint
from posttrain.orchestration.folder_materializer import html_table
from posttrain.reporting.sweep_report import sweep_picture, sweep_rows


class SweepPointMaterializer(RecordMaterializer):
    """Stores a point with its scores on every validation pair."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (SweepPoint,)

    def extract_metadata(self, data: Any) -> dict[str, MetadataType]:
        """Return the values of the point, and its figures or the reason why it has none."""
        figures = data.scores.metrics() if data.scores else {"failure": data.failure or ""}
        return {"point": point_label(data.values), **figures}


class SweepOutcomeMaterializer(RecordMaterializer):
    """Stores the outcome of a sweep. The dashboard shows its picture and table."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (SweepOutcome,)

    def save_visualizations(self, data: Any) -> dict[str, VisualizationType]:
        """Write one page with picture and table."""
        uri = f"{self.uri}/preview.html"
        svg = sweep_picture(data)
        with self.artifact_store.open(uri, "w") as file:
            file.write(f"{svg[svg.index('<svg') :]}<p>{escape(data.reason)}</p>{html_table(*sweep_rows(data))}")
        return {uri: VisualizationType.HTML}

    def extract_metadata(self, data: Any) -> dict[str, MetadataType]:
        """Return the chosen point, the measure it was chosen by, and the number of points."""
        return {"chosen": data.points[data.chosen].label, "chosen_by": data.chosen_by, "n_points": len(data.points)}
