"""Tokens: one Parquet file per split."""

from typing import Any, ClassVar

from zenml.metadata.metadata_types import MetadataType

from posttrain.chat.tokens import PairTokens, SftTokens
from posttrain.orchestration.folder_materializer import FolderMaterializer


class TokensMaterializer(FolderMaterializer):
    """Stores the tokens of pairs or of SFT rows. Their content hash depends on the tokens and how they were cut."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (PairTokens, SftTokens)

    def extract_metadata(self, data: PairTokens | SftTokens) -> dict[str, MetadataType]:
        """Return the number of rows in each split, how many were cut, and the digest."""
        n_rows: dict[str, MetadataType] = {f"n_{split}": len(table) for split, table in data.tables.items()}
        return {"digest": data.digest, **n_rows, "cut": {split: dict(counts) for split, counts in data.cut.items()}}

    def compute_content_hash(self, data: PairTokens | SftTokens) -> str:
        """Return the digest."""
        return data.digest
