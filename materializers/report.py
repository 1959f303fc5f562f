"""Materializer of run reports: the record and its HTML page."""

import hashlib
from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from posttrain.orchestration.running_step.folder_materializer import FolderMaterializer
from posttrain.reporting.pages.run_page import report_page
from posttrain.reporting.run_report import RunReport


class RunReportMaterializer(FolderMaterializer):
    """Stores the report of a run. The dashboard shows it as an HTML page."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (RunReport,)

    def extract_metadata(self, data: RunReport) -> dict[str, MetadataType]:
        """Return the verdict."""
        return {"verdict": data.verdict}

    def save_visualizations(self, data: RunReport) -> dict[str, VisualizationType]:
        """Write the HTML page and return its location."""
        return self.save_page(report_page(data))

    def compute_content_hash(self, data: RunReport) -> str:
        """Return the sha256 of the whole report."""
        return hashlib.sha256(data.model_dump_json().encode()).hexdigest()
