"""Base of the materializers of small records: each record is one JSON file."""

import hashlib
from typing import Any, ClassVar

from pydantic import BaseModel
from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.metadata.metadata_types import MetadataType

from posttrain.orchestration.running_step.stored_files import (
    DamagedArtifact,
    StoredFiles,
    compare,
    read_digests,
    write_digests,
)

RECORD = "record.json"


class RecordMaterializer(BaseMaterializer):
    """Stores a record as one JSON file."""

    SKIP_REGISTRATION: ClassVar[bool] = True
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    @property
    def file_uri(self) -> str:
        """Return the URI of the record."""
        return f"{self.uri}/{RECORD}"

    def save(self, data: BaseModel) -> None:
        """Store the record, then its digest."""
        text = data.model_dump_json(indent=2)
        with self.artifact_store.open(self.file_uri, "w") as file:
            file.write(text)
        write_digests(self.uri, StoredFiles(self.uri, {RECORD: _digest(text.encode())}), self.artifact_store)

    def load(self, data_type: type[Any]) -> Any:
        """Return the stored record.

        Raises:
            DamagedArtifact: it is missing or damaged.
        """
        stored = read_digests(self.uri, self.artifact_store)
        try:
            with self.artifact_store.open(self.file_uri, "rb") as file:
                content = file.read()
        except FileNotFoundError as error:
            raise DamagedArtifact(self.uri, f"{RECORD} is missing") from error
        compare(self.uri, stored.digests, {RECORD: _digest(content)})
        return data_type.model_validate_json(content)

    def save_visualizations(self, data: Any) -> dict[str, VisualizationType]:
        """Return the file itself, which the dashboard can show."""
        return {self.file_uri: VisualizationType.JSON}

    def extract_metadata(self, data: Any) -> dict[str, MetadataType]:
        """Return every field that has a value."""
        fields: dict[str, MetadataType] = data.model_dump(mode="json", exclude_none=True)
        return fields

    def compute_content_hash(self, data: Any) -> str:
        """Return the sha256 of the record."""
        return _digest(data.model_dump_json().encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
