"""Further sets of pairs to judge by."""

import hashlib
from typing import Any, ClassVar

from zenml.metadata.metadata_types import MetadataType

from posttrain.data.pair_sets import PairSets
from posttrain.orchestration.folder_materializer import FolderMaterializer


class PairSetsMaterializer(FolderMaterializer):
    """Stores sets of pairs; their content hash covers names and rows."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (PairSets,)

    def extract_metadata(self, data: PairSets) -> dict[str, MetadataType]:
        """Pairs in each set, and how many rows it lost."""
        return {
            name: {"n_pairs": len(found.rows), "digest": found.digest, **found.dropped}
            for name, found in data.sets.items()
        }

    def compute_content_hash(self, data: PairSets) -> str:
        """sha256 of every set's name and digest."""
        lines = "".join(f"{name} {found.digest}\n" for name, found in data.sets.items())
        return hashlib.sha256(lines.encode()).hexdigest()
