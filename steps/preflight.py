"""Check the base model, the settings and the machine before anything is trained."""

from typing import Annotated

from posttrain.config import ModelSection
from posttrain.models.checkpoint import Base
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.training_machine import trains_here
from posttrain.training import preflight as library
from posttrain.training.preflight import Needs


@step
def preflight(base: Base, model: ModelSection, needs: Needs) -> Annotated[Base, "checked_base"]:
    """Return the base model, once it has been trained, saved, reloaded and compared on a few tokens.

    All later steps take the base from here, so none of them starts before.
    """
    print(f"Preflight: {library.preflight(base, model, needs, trains_here=trains_here())}")
    return base
