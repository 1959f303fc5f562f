"""Reports: the record, and the page that shows it."""

import hashlib
from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from posttrain.orchestration.folder_materializer import FolderMaterializer
from posttrain.reporting.run_page import report_page
from posttrain.reporting.run_report import RunReport


class RunReportMaterializer(FolderMaterializer):
    """Stores a run's report; the dashboard shows its page."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (RunReport,)

    def extract_metadata(self, data: RunReport) -> dict[str, MetadataType]:
        """The verdict."""
        return {"verdict": data.verdict}

    def save_visualizations(self, data: RunReport) -> dict[str, VisualizationType]:
        """The page."""
        return self.save_page(report_page(data))

    def compute_content_hash(self, data: RunReport) -> str:
        """sha256 of everything in it."""
        return hashlib.sha256(data.model_dump_json().encode()).hexdigest()
