"""Base of the materializers of small records: each record is one JSON file."""

import hashlib
from typing import Any, ClassVar

from pydantic import BaseModel
from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.metadata.metadata_types import MetadataType


class RecordMaterializer(BaseMaterializer):
    """Stores a record as one JSON file."""

    SKIP_REGISTRATION: ClassVar[bool] = True
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    @property
    def file_uri(self) -> str:
        """Return the URI of the record."""
        return f"{self.uri}/record.json"

    def save(self, data: BaseModel) -> None:
        """Store the record."""
        with self.artifact_store.open(self.file_uri, "w") as file:
            file.write(data.model_dump_json(indent=2))

    def load(self, data_type: type[Any]) -> Any:
        """Return the stored record."""
        with self.artifact_store.open(self.file_uri, "r") as file:
            return data_type.model_validate_json(file.read())

    def save_visualizations(self, data: Any) -> dict[str, VisualizationType]:
        """Return the file itself, which the dashboard can show."""
        return {self.file_uri: VisualizationType.JSON}

    def extract_metadata(self, data: Any) -> dict[str, MetadataType]:
        """Return every field that has a value."""
        fields: dict[str, MetadataType] = data.model_dump(exclude_none=True)
        return fields

    def compute_content_hash(self, data: Any) -> str:
        """Return the sha256 of the record."""
        return hashlib.sha256(data.model_dump_json().encode()).hexdigest()
