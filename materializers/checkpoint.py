"""Checkpoints: weights, tokenizer and manifest. The files are checked against the manifest whenever they are loaded."""

from typing import Any, ClassVar

from zenml.enums import ArtifactType
from zenml.metadata.metadata_types import MetadataType

from posttrain.errors import UserError
from posttrain.models.base import demo_folder
from posttrain.models.checkpoint import MANIFEST, Checkpoint, file_digest
from posttrain.orchestration.running_step.folder_materializer import FILES, FolderMaterializer
from posttrain.orchestration.running_step.stored_files import DamagedArtifact
from posttrain.tracking.mlmodel import MLMODEL, TOKENIZER, StoredModel, mlmodel

NOT_OF_THE_TOKENIZER = (
    "model", "adapter_", "config.json", "generation_config.json", "manifest.json", "history.json", "trained_prompts.json",
)  # fmt: skip
"""Beginnings of the names of a checkpoint's other files."""


class CheckpointMaterializer(FolderMaterializer):
    """Stores a checkpoint's folder; its content hash is the digest of the model."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Checkpoint,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL

    def save(self, data: Checkpoint) -> None:
        """Store the checkpoint's files, and beside them what makes them a model of MLflow."""
        if data.manifest.kind != "base":  # which has no weights
            self._save_for_mlflow(data)
        digests = {**data.manifest.files, MANIFEST: file_digest(data.path / MANIFEST)}
        self.store_folder(data.path, {f"{FILES}/{name}": digest for name, digest in digests.items()})

    def _save_for_mlflow(self, data: Checkpoint) -> None:
        manifest, store = data.manifest, self.artifact_store
        base = str(demo_folder()) if manifest.base.id == "demo" else manifest.base.id
        stored = StoredModel(
            manifest.kind == "adapter",
            base,
            manifest.base.revision,
            manifest.template,
            is_verifier=manifest.stage == "verifier",
        )
        store.makedirs(f"{self.uri}/{TOKENIZER}")
        for file in data.path.iterdir():
            if not file.name.startswith(NOT_OF_THE_TOKENIZER):
                with store.open(f"{self.uri}/{TOKENIZER}/{file.name}", "wb") as target:
                    target.write(file.read_bytes())
        with store.open(f"{self.uri}/{MLMODEL}", "w") as target:
            target.write(mlmodel(stored))

    def load(self, data_type: type[Any]) -> Any:
        """Return the checkpoint, after all its files were compared with its manifest.

        Raises:
            DamagedArtifact: a file is missing, damaged or not part of the checkpoint.
        """
        try:
            return super().load(data_type)
        except DamagedArtifact:
            raise
        except UserError as error:
            raise DamagedArtifact(self.uri, str(error)) from error

    def is_checked(self, name: str) -> bool:
        """Return whether a file is the manifest: with it, the checkpoint compares all others."""
        return name == f"{FILES}/{MANIFEST}"

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
