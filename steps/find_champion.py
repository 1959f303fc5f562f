"""Who is in production."""

from typing import Annotated

from zenml.artifacts.unmaterialized_artifact import UnmaterializedArtifact

from posttrain.evaluation.gate import Champion
from posttrain.orchestration.registry import reconcile, standing_champion
from posttrain.orchestration.step import step
from posttrain.orchestration.step_tracking import tracking_uri


@step(enable_cache=False)
def find_champion(candidate: UnmaterializedArtifact, name: str) -> Annotated[Champion, "champion"]:
    """The model that the candidate must beat, if there is one. Always asked again: it may have been replaced.

    The registries are put in order before they are asked: an earlier run may have been cut off in the middle.
    """
    reconcile(name, tracking_uri())
    return standing_champion(name, str(candidate.run_metadata["digest"]))
