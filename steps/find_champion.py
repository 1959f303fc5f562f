"""Find the model in production."""

from typing import Annotated

from zenml.artifacts.unmaterialized_artifact import UnmaterializedArtifact

from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.gate.rejection import Rejection
from posttrain.orchestration.model_versions.registry import reconcile, standing_champion
from posttrain.orchestration.model_versions.rejections import standing_rejection
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracking_uri


@step(enable_cache=False)
def find_champion(
    candidate: UnmaterializedArtifact, name: str
) -> tuple[
    Annotated[Champion, "champion"],
    Annotated[Rejection, "rejection"],
]:
    """Return the model that the candidate must beat, if there is one, and whether the candidate itself was taken out of production.

    Never cached: either may have changed. First the registries are reconciled, because an earlier run may have been interrupted
    while it updated them.
    """
    reconcile(name, tracking_uri())
    digest = str(candidate.run_metadata["digest"])
    champion, rejection = standing_champion(name, digest), standing_rejection(name, digest)
    return champion, rejection  # two names: ZenML counts the outputs in the source code
