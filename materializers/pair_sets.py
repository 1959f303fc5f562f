"""Further sets of pairs for evaluation."""

import hashlib
from typing import Any, ClassVar

from zenml.metadata.metadata_types import MetadataType

from posttrain.data.pair_sets import PairSets
from posttrain.orchestration.running_step.folder_materializer import FolderMaterializer


class PairSetsMaterializer(FolderMaterializer):
    """Stores sets of pairs. Their content hash covers names and rows."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (PairSets,)

    def extract_metadata(self, data: PairSets) -> dict[str, MetadataType]:
        """Return the number of pairs in each set, and how many rows were dropped."""
        return {
            name: {"n_pairs": len(found.rows), "digest": found.digest, **found.dropped}
            for name, found in data.sets.items()
        }

    def compute_content_hash(self, data: PairSets) -> str:
        """Return sha256 of the name and digest of every set."""
        lines = "".join(f"{name} {found.digest}\n" for name, found in data.sets.items())
        return hashlib.sha256(lines.encode()).hexdigest()
