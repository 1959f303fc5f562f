"""Collected preference pairs: a Parquet file, its report, and a page with examples."""

from typing import Any, ClassVar

from zenml.enums import VisualizationType
from zenml.metadata.metadata_types import MetadataType

from posttrain.feedback.collecting.collected_pairs import CollectedPreferences
from posttrain.orchestration.running_step.folder_materializer import FolderMaterializer
from posttrain.reporting.pages.collected_page import collected_page


class CollectedPreferencesMaterializer(FolderMaterializer):
    """Stores collected pairs."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (CollectedPreferences,)

    def extract_metadata(self, data: CollectedPreferences) -> dict[str, MetadataType]:
        """Return the digest and the counts."""
        return {"digest": data.digest, **data.report.model_dump(mode="json", exclude_none=True)}

    def save_visualizations(self, data: CollectedPreferences) -> dict[str, VisualizationType]:
        """Write the page."""
        return self.save_page(collected_page(data.table, data.report.model_dump()))

    def compute_content_hash(self, data: CollectedPreferences) -> str:
        """Return the digest of all rows."""
        return data.digest
