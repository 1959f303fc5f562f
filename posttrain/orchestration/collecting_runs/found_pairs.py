"""The outcome of a run of collect_pipeline, and collected pairs by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from posttrain.errors import UserError
from posttrain.storage.plain_text import plain_text

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

    from posttrain.feedback.collecting.collected_pairs import CollectedPreferences

ARTIFACT_NAME = "collected_preferences"


def print_collection(run: PipelineRunResponse) -> None:
    """Print what a successful run collected, and how to train on it."""
    from posttrain.orchestration.finished_runs import output

    _print(output(run.steps["collect"]))


def find_collected(version: str | None) -> tuple[CollectedPreferences, str]:
    """Return collected pairs and their name with the version; None: the newest.

    Raises:
        UserError: there are none.
    """
    from zenml.client import Client

    which: dict[str, Any] = {"version": version} if version else {}
    found = (
        Client()
        .list_artifact_versions(artifact=ARTIFACT_NAME, sort_by="desc:created", size=1, hydrate=True, **which)
        .items
    )
    if not found:
        raise UserError(
            f"{ARTIFACT_NAME}{f':{version}' if version else ''}: no such pairs: run collect_pipeline, or list the versions with "
            f"`zenml artifact version list --artifact {ARTIFACT_NAME}`"
        )
    return found[0].load(), f"{ARTIFACT_NAME}:{found[0].version}"


def _print(artifact: Any) -> None:
    from posttrain.reporting.pages.collected_page import summary_lines

    name = f"{artifact.artifact.name}:{artifact.version}"
    for line in summary_lines(artifact.load().report.model_dump()):
        click.echo(plain_text(line))
    click.echo(f"Page:   posttrain collected {artifact.version} --html collected.html")
    click.echo(f'Train:  data.sources: [{{path: "artifact:{name}"}}]')
