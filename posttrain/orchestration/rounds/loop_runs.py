"""Runs the rounds of a loop. What a finished run did is not repeated, and an interrupted run is continued."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import yaml
from zenml.client import Client
from zenml.models import PipelineRunResponse

from posttrain.errors import UserError
from posttrain.orchestration.finished_runs import output
from posttrain.orchestration.model_versions.registry import sole_champion
from posttrain.orchestration.rounds.round_configs import (
    Document,
    collection,
    first_training,
    next_training,
    tag_of,
)
from posttrain.orchestration.zenml_command import run_pipeline

POLL_S = 15.0
COLLECT, TRAIN = "collect_pipeline", "dpo_pipeline"


def run_loop(
    document: Document, n_rounds: int, stack: str | None = None
) -> list[tuple[PipelineRunResponse | None, PipelineRunResponse]]:
    """Run the first training, then rounds of collecting and training, and return the two runs of each round.

    Round 0 has no collection. Every round starts from the version in production when it began, so a round whose model was refused
    is followed by one with other prompts and the pairs of both.

    Args:
        document: the content of a run file with a `collect` section.
        n_rounds: number of rounds after round 0.

    Raises:
        UserError: a run failed, or no model is in production after round 0.
    """
    name = document["parameters"]["config"].get("name", "dpo")
    rounds: list[tuple[PipelineRunResponse | None, PipelineRunResponse]] = []
    rounds.append((None, _run(TRAIN, first_training(document), tag_of(document, 0, "train"), stack)))
    artifacts: list[str] = []
    for number in range(1, n_rounds + 1):
        model = _model_of_round(name, tag_of(document, number, "collect"))
        collected = _run(
            COLLECT,
            collection(document, number, model, artifacts),
            tag_of(document, number, "collect"),
            stack,
        )
        version = output(collected.steps["collect"]).version
        artifacts = [*artifacts, f"artifact:collected_preferences:{version}"]
        trained = _run(
            TRAIN,
            next_training(document, number, model, artifacts),
            tag_of(document, number, "train"),
            stack,
        )
        rounds.append((collected, trained))
    return rounds


def _model_of_round(name: str, tag: str) -> str:
    """Return the version that a round begins with: that of its first collection, else the one in production now."""
    begun = Client().list_pipeline_runs(tags=[tag], sort_by="asc:created", size=1, hydrate=True).items
    if begun:
        return str((begun[0].config.parameters or {})["config"]["collect"]["models"][0])
    champion = sole_champion(name)
    if champion is None:
        raise UserError(
            f"loop: no version of {name} is in production, because the gate refused the model of round 0: see `posttrain report`, "
            "and change the training or the gate"
        )
    return f"{name}:{champion.number}"


def _run(pipeline: str, document: Document, tag: str, stack: str | None) -> PipelineRunResponse:
    """Return the finished run with a tag; start it if there is none."""
    if found := _finished(tag):
        print(f"{tag}: taken from run {found.name}")
        return found
    with tempfile.TemporaryDirectory(prefix="posttrain-") as folder:
        path = Path(folder) / f"{tag}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
        run_pipeline(pipeline, path, stack)
    return _wait(tag)


def _finished(tag: str) -> PipelineRunResponse | None:
    runs = (
        Client().list_pipeline_runs(tags=[tag], status="completed", sort_by="desc:created", size=1, hydrate=True).items
    )
    return runs[0] if runs else None


def _wait(tag: str) -> PipelineRunResponse:
    """Return the newest run with a tag once it has finished; on a cluster it goes on without this terminal."""
    while True:
        (run,) = Client().list_pipeline_runs(tags=[tag], sort_by="desc:created", size=1, hydrate=True).items
        if run.status.is_finished:
            if not run.status.is_successful:
                raise UserError(
                    f"loop: run {run.name} {run.status.value}: the same command continues once its cause is removed"
                )
            return run
        time.sleep(POLL_S)
