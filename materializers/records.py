"""Small records as JSON: the base model, the champion, the promotion."""

import hashlib
from typing import Any, ClassVar

from pydantic import BaseModel
from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.metadata.metadata_types import MetadataType

from posttrain.evaluation.gate import Champion, Promotion
from posttrain.models.checkpoint import Base


class RecordMaterializer(BaseMaterializer):
    """Stores a record as one JSON file."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Base, Champion, Promotion)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    @property
    def file_uri(self) -> str:
        """Return the URI of the record."""
        return f"{self.uri}/record.json"

    def save(self, data: BaseModel) -> None:
        """Store the record."""
        with self.artifact_store.open(self.file_uri, "w") as file:
            file.write(data.model_dump_json(indent=2))

    def load(self, data_type: type[BaseModel]) -> BaseModel:
        """Return the record."""
        with self.artifact_store.open(self.file_uri, "r") as file:
            return data_type.model_validate_json(file.read())

    def save_visualizations(self, data: BaseModel) -> dict[str, VisualizationType]:
        """Return the file itself, which the dashboard can show."""
        return {self.file_uri: VisualizationType.JSON}

    def extract_metadata(self, data: BaseModel) -> dict[str, MetadataType]:
        """Return every field that has a value."""
        return data.model_dump(exclude_none=True)

    def compute_content_hash(self, data: BaseModel) -> str:
        """Return sha256 of the record. For a champion, return the digest of its model."""
        if isinstance(data, Champion):
            return data.digest or "none"  # its version in the registry does not affect the comparison
        return hashlib.sha256(data.model_dump_json().encode()).hexdigest()
