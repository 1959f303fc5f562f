"""The gate to production."""

from typing import Annotated

from zenml import step
from zenml.enums import ModelStages

from posttrain import promotion as library
from posttrain.config import GateSection
from posttrain.evaluate import Evaluation
from posttrain.promotion import Promotion
from steps._registry import register_version
from steps._tracking import tracked


@step
def promote(evaluation: Evaluation, gate: GateSection, name: str) -> Annotated[Promotion, "promotion"]:
    """Whether the model is promoted, and why; either way it becomes a version of the model in the registry."""
    promotion = library.decide(evaluation.figures, gate)
    with tracked(nested=False) as run:
        run.set_tags({"promoted": str(promotion.promoted).lower(), "reasons": "; ".join(promotion.reasons)})
    version = register_version(name, promotion.model_dump())
    if promotion.promoted:
        version.set_stage(ModelStages.PRODUCTION, force=True)
    return promotion
