"""The base model, pinned."""

from typing import Annotated

from posttrain.config import ModelSection
from posttrain.models import base as library
from posttrain.models.checkpoint import Base
from posttrain.orchestration.step import step


@step(enable_cache=False)
def resolve_base(model: ModelSection) -> Annotated[Base, "base_model"]:
    """The exact base that the config's name stands for now. Always asked again: a branch moves, a folder is edited."""
    return library.resolve_base(model)
