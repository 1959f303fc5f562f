"""Find the model in production."""

from typing import Annotated

from zenml.artifacts.unmaterialized_artifact import UnmaterializedArtifact

from posttrain.evaluation.gate.champion import Champion
from posttrain.orchestration.model_versions.registry import reconcile, standing_champion
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracking_uri


@step(enable_cache=False)
def find_champion(candidate: UnmaterializedArtifact, name: str) -> Annotated[Champion, "champion"]:
    """Return the model that the candidate must beat, if there is one. Never cached: it may have been replaced.

    First the registries are reconciled, because an earlier run may have been interrupted while it updated them.
    """
    reconcile(name, tracking_uri())
    return standing_champion(name, str(candidate.run_metadata["digest"]))
