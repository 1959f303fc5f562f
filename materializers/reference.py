"""The reference's log-probabilities."""

from typing import Any, ClassVar

from zenml.metadata.metadata_types import MetadataType

from posttrain.orchestration.folder_materializer import FolderMaterializer
from posttrain.training.reference import ReferenceLogps


class ReferenceLogpsMaterializer(FolderMaterializer):
    """Stores the table of log-probabilities; its content hash is the key of what they were computed from."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (ReferenceLogps,)

    def extract_metadata(self, data: ReferenceLogps) -> dict[str, MetadataType]:
        """How many pairs were scored, and with what."""
        return {"n_pairs": data.table.num_rows, "key": data.key, "checkpoint": data.checkpoint, "cut": data.cut}

    def compute_content_hash(self, data: ReferenceLogps) -> str:
        """The key: same weights, tokens, template and precision."""
        return data.key
