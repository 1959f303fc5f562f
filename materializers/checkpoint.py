"""Checkpoints: weights, tokenizer and manifest. The files are checked against the manifest whenever they are loaded."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType
from zenml.metadata.metadata_types import MetadataType

from posttrain.models.checkpoint import Checkpoint
from posttrain.orchestration.running_step.folder_materializer import FolderMaterializer, upload


class CheckpointMaterializer(FolderMaterializer):
    """Stores a checkpoint's folder; its content hash is the digest of the model."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Checkpoint,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL

    def save(self, data: Checkpoint) -> None:
        """Store the checkpoint's files."""
        upload(data.path, self.files_uri, self.artifact_store)

    def extract_metadata(self, data: Checkpoint) -> dict[str, MetadataType]:
        """Return the model's identity, its origin, and the metrics of its training."""
        manifest = data.manifest
        return {
            "digest": manifest.digest,
            "kind": manifest.kind,
            "base": manifest.base.id,
            "revision": manifest.base.revision or "",
            "parent": manifest.parent or "",
            "size_bytes": sum(file.stat().st_size for file in data.path.iterdir()),
            **manifest.metrics,
        }

    def compute_content_hash(self, data: Checkpoint) -> str:
        """Return the model's digest, which does not depend on the training history."""
        return data.digest
