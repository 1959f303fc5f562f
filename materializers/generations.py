"""Generations: what the models answered."""

import hashlib
from typing import Any, ClassVar

from zenml.metadata.metadata_types import MetadataType

from posttrain.evaluation.generations import Generations, key_figures
from posttrain.orchestration.folder_materializer import FolderMaterializer


class GenerationsMaterializer(FolderMaterializer):
    """Stores all answers; the report shows them."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Generations,)

    def extract_metadata(self, data: Generations) -> dict[str, MetadataType]:
        """How many prompts, and the key figures."""
        return {"n_prompts": len(data.exchanges), **key_figures(data)}

    def compute_content_hash(self, data: Generations) -> str:
        """sha256 of everything in it."""
        return hashlib.sha256(data.model_dump_json().encode()).hexdigest()
