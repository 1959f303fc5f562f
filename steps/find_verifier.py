"""Find the verifier that judges answers."""

from typing import Annotated

from posttrain.evaluation.gate.champion import Champion
from posttrain.orchestration.model_versions.versions import find_artifact
from posttrain.orchestration.running_step.step import step


@step(enable_cache=False)
def find_verifier(name: str) -> Annotated[Champion, "judging_verifier"]:
    """Return the version that a name stands for. Never cached: another one may have been promoted."""
    artifact, version = find_artifact(name)
    return Champion(digest=str(artifact.run_metadata["digest"]), version=version, artifact=str(artifact.id))
