"""Materializer of data reports: JSON, and an HTML page for the dashboard."""

from typing import Any, ClassVar

from pydantic import BaseModel
from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from materializers.records import RecordMaterializer
from posttrain.chat.token_report import TokenReport
from posttrain.data.report import DataReport
from posttrain.reporting.pages.data_page import data_page, token_page


class ReportMaterializer(RecordMaterializer):
    """Stores a data report as JSON. The dashboard shows it as an HTML page."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (DataReport, TokenReport)

    def save_visualizations(self, data: BaseModel) -> dict[str, VisualizationType]:
        """Write the HTML page and return its location."""
        uri = f"{self.uri}/report.html"
        with self.artifact_store.open(uri, "w") as file:
            file.write(
                data_page(data) if isinstance(data, DataReport) else token_page(TokenReport.model_validate(data))
            )
        return {uri: VisualizationType.HTML}

    def extract_metadata(self, data: BaseModel) -> dict[str, MetadataType]:
        """Return the counts. Example rows are shown on the page only."""
        return data.model_dump(exclude_none=True, exclude={"examples", "figures", "lengths"})
