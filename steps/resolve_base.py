"""Pin the base model."""

from typing import Annotated

from posttrain.config import ModelSection
from posttrain.models import base as library
from posttrain.models.checkpoint import Base
from posttrain.orchestration.running_step.step import step


@step(enable_cache=False)
def resolve_base(
    model: ModelSection,
) -> tuple[
    Annotated[Base, "base_model"],
    Annotated[ModelSection, "model_settings"],
    Annotated[ModelSection, "tokenizer_settings"],
]:
    """Return the base model that the config's name currently refers to, and its settings.

    This step is never cached, because a branch or a folder can change. The cache keys of later steps use the content of the
    base, not its path.
    """
    base = library.resolve_base(model)
    tokenizer = model.for_tokens
    return base, model, tokenizer  # spelled out: ZenML counts the outputs in the source
