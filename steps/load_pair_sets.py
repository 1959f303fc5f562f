"""Load further sets of pairs for evaluation."""

from typing import Annotated

from posttrain.config import DataSection, Source
from posttrain.data import pair_set_loader as library
from posttrain.data.pair_sets import PairSets
from posttrain.data.stored import Preferences
from posttrain.orchestration.running_step.step import step


@step(enable_cache=False)
def load_pair_sets(
    preferences: Preferences, sources: list[Source], data: DataSection
) -> Annotated[PairSets, "pair_sets"]:
    """Return the sets without pairs that are trained on. Never cached: a source may have changed."""
    return library.load_pair_sets(sources, preferences, data)
