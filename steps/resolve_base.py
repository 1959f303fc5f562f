"""Pin the base model."""

from typing import Annotated

from posttrain.config import ModelSection
from posttrain.models import base as library
from posttrain.models.checkpoint import Base
from posttrain.orchestration.step import step


@step(enable_cache=False)
def resolve_base(model: ModelSection) -> Annotated[Base, "base_model"]:
    """Return the exact base that the configured name refers to. Never cached: a branch or folder may have changed."""
    return library.resolve_base(model)
