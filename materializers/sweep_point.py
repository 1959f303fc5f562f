"""A point of a sweep with its scores."""

from typing import Any, ClassVar

from zenml.metadata.metadata_types import MetadataType

from materializers.records import RecordMaterializer
from posttrain.config import point_label
from posttrain.evaluation.sweep import SweepPoint


class SweepPointMaterializer(RecordMaterializer):
    """Stores a point with its scores of every validation pair."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (SweepPoint,)

    def extract_metadata(self, data: Any) -> dict[str, MetadataType]:
        """Return the label of the point, and its figures or the reason why it has none."""
        figures = data.scores.metrics() if data.scores else {"failure": data.failure or ""}
        return {"point": point_label(data.values), **figures}
