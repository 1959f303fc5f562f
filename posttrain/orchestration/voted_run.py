"""The answers that people voted on, found in ZenML by their digest."""

from __future__ import annotations

from zenml.client import Client

from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import Generations
from posttrain.feedback.ab import digest

MOST_SEARCHED = 200


def find_answers(answers: str) -> Generations:
    """Return the answers with a digest, from the newest artifacts of all runs.

    Raises:
        UserError: none of them has it.
    """
    versions = Client().list_artifact_versions(artifact="generations", sort_by="desc:created", size=MOST_SEARCHED)
    for version in versions.items:
        found: Generations = version.load()
        if digest(found) == answers:
            return found
    raise UserError(
        f"none of the last {len(versions.items)} runs with answers has those that the votes are about: name the run with --run, "
        "or use the ZenML store that has it"
    )
