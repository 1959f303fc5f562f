"""Log-probabilities of the reference."""

from typing import Any, ClassVar

from zenml.metadata.metadata_types import MetadataType

from posttrain.orchestration.running_step.folder_materializer import FolderMaterializer
from posttrain.training.reference import ReferenceLogps


class ReferenceLogpsMaterializer(FolderMaterializer):
    """Stores the table of log-probabilities. Its content hash is the key of the inputs that they were computed from."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (ReferenceLogps,)

    def extract_metadata(self, data: ReferenceLogps) -> dict[str, MetadataType]:
        """Return the number of scored pairs, and what they were scored with."""
        return {
            "n_pairs": data.n_scored, "key": data.key, "policy": data.policy, "checkpoint": data.checkpoint, "cut": data.cut
        }  # fmt: skip

    def compute_content_hash(self, data: ReferenceLogps) -> str:
        """Return the key: it is the same for the same weights, tokens, template and precision."""
        return data.key
