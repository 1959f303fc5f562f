"""The outcome of a sweep, with its picture."""

from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from materializers.records import RecordMaterializer
from posttrain.evaluation.sweep import SweepOutcome
from posttrain.reporting.html import Table, tables_page
from posttrain.reporting.sweep_report import sweep_picture, sweep_rows


class SweepOutcomeMaterializer(RecordMaterializer):
    """Stores the outcome of a sweep. The dashboard shows its picture and table."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (SweepOutcome,)

    def save_visualizations(self, data: Any) -> dict[str, VisualizationType]:
        """Write one page with picture and table."""
        uri = f"{self.uri}/preview.html"
        page = tables_page("Sweep", {"": Table(*sweep_rows(data))}, [data.reason], [sweep_picture(data)])
        with self.artifact_store.open(uri, "w") as file:
            file.write(page)
        return {uri: VisualizationType.HTML}

    def extract_metadata(self, data: Any) -> dict[str, MetadataType]:
        """Return the chosen point, the measure it was chosen by, and the number of points."""
        return {"chosen": data.points[data.chosen].label, "chosen_by": data.chosen_by, "n_points": len(data.points)}
