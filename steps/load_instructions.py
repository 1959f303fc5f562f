"""Load separate instruction sets for SFT."""

from typing import Annotated

from posttrain.config import DataSection, Source
from posttrain.data import loader as library
from posttrain.data.report import DataReport
from posttrain.data.stored import Instructions, Preferences
from posttrain.orchestration.running_step.step import step


@step(enable_cache=False)
def load_instructions(
    preferences: Preferences, datasets: list[Source], data: DataSection
) -> tuple[
    Annotated[Instructions, "instructions"],
    Annotated[DataReport, "instructions_report"],
]:
    """Return the instructions whose prompts are not held out for evaluation. Never cached: the source may have changed."""
    instructions, report = library.load_instructions(datasets, preferences, data)
    return instructions, report  # two names: ZenML counts the outputs in the source code
