"""The base model and the settings of the model: what every training starts from."""

import hashlib
import json
from typing import Any, ClassVar

from materializers.records import RecordMaterializer
from posttrain.config import ModelSection
from posttrain.models.checkpoint import Base


class BaseModelMaterializer(RecordMaterializer):
    """Stores which base model a run trains."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Base,)

    def compute_content_hash(self, data: Base) -> str:
        """Return the sha256 of the model's content: its name may be a path, and the same files may be in another folder."""
        return hashlib.sha256(f"{data.digest} {data.template_digest}".encode()).hexdigest()


class ModelSettingsMaterializer(RecordMaterializer):
    """Stores the settings of the model. A step that takes them as an artifact is cached by what they mean, not by paths."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (ModelSection,)

    def compute_content_hash(self, data: ModelSection) -> str:
        """Return the sha256 of the settings; base model and template file are left to the digests in `Base`."""
        return hashlib.sha256(json.dumps(data.without_paths(), sort_keys=True).encode()).hexdigest()
