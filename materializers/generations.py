"""Generations: the models' answers to test prompts."""

import hashlib
from typing import Any, ClassVar

from zenml.metadata.metadata_types import MetadataType

from posttrain.evaluation.answers.generations import Generations, key_figures
from posttrain.orchestration.running_step.folder_materializer import FolderMaterializer


class GenerationsMaterializer(FolderMaterializer):
    """Stores all answers. The run's report shows them."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Generations,)

    def extract_metadata(self, data: Generations) -> dict[str, MetadataType]:
        """Return the number of prompts and the key figures."""
        return {"n_prompts": len(data.exchanges), **key_figures(data)}

    def compute_content_hash(self, data: Generations) -> str:
        """Return sha256 of all answers and figures."""
        return hashlib.sha256(data.model_dump_json().encode()).hexdigest()
