"""Two checkpoints in a pipeline run, promotions of them into real registries, and a process that ends at a call."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from mlflow import MlflowClient
from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import ModelStages

import materializers  # noqa: F401 (registers them)
from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.gate.decision import Promotion
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.orchestration.model_versions.registry import JudgedModel, settle
from posttrain.tracking import Tracker, default_tracking_uri
from posttrain.tracking.mlflow_registry import ModelRegistry

GOOD = Promotion(promoted=True, opponent="sft", reasons=["well done"])
BAD = Promotion(promoted=False, opponent="sft", reasons=["hardly better", "gate.min_gain"])


@step(enable_cache=False)
def make_first(folder: str) -> Annotated[Checkpoint, "dpo_checkpoint"]:
    return Checkpoint.load(Path(folder) / "first")


@step(enable_cache=False)
def make_second(folder: str) -> Annotated[Checkpoint, "other_checkpoint"]:
    return Checkpoint.load(Path(folder) / "second")


@pipeline
def two_checkpoints(folder: str) -> None:
    make_first(folder)
    make_second(folder)


@pytest.fixture(scope="module")
def two_made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pipeline run, and the two checkpoint artifacts that it made."""
    parent = tmp_path_factory.mktemp("made")
    for name in ("first", "second"):
        folder = parent / name
        folder.mkdir()
        (folder / "model.safetensors").write_text(name)
        base = Base(id="some/base", revision=None, digest="b")
        about = {"stage": "dpo", "kind": "full", "base": base, "parent": None, "template": "", "stop_ids": [0]}
        seal(folder, [], **about, metrics={})
    run = two_checkpoints(str(parent))
    outputs = [run.steps[name].output for name in ("make_first", "make_second")]
    return run, *outputs


class Place:
    """One model's registries, and promotions into them."""

    def __init__(self, name: str, made: Any) -> None:
        with Tracker(default_tracking_uri(), "registry", str(made[0].id), "run").parent("promote"):
            pass
        self.name = name
        self.run, first, second = made
        self.candidates = {"first": first, "second": second}
        self.uri = default_tracking_uri()

    def promote(self, which: str, promotion: Promotion = GOOD, opponent: Champion | None = None) -> Promotion:
        tracker = Tracker(self.uri, "registry", str(self.run.id), "run")
        judged = JudgedModel(self.name, f"dpo-{which}", promotion, opponent or Champion(), self.candidates[which])
        return settle(judged, self.run, tracker)

    def champions(self) -> tuple[list[str], str | None]:
        """In production in ZenML, and the name in ZenML of MLflow's champion."""
        standing = Client().list_model_versions(model=self.name, stage=ModelStages.PRODUCTION).items
        return [str(version.name) for version in standing], self.alias("champion")

    def alias(self, alias: str) -> str | None:
        registry = ModelRegistry(self.uri, self.name)
        names = {number: name for name, number in registry.numbers().items()}
        number = registry.alias(alias)
        return names[number] if number else None

    def version(self, which: str) -> Any:
        return Client().get_model_version(self.name, f"dpo-{which}")

    def n_versions(self) -> tuple[int, int]:
        """In ZenML, and in MLflow."""
        client = MlflowClient(self.uri)
        return (
            Client().list_model_versions(model=self.name).total,
            len(client.search_model_versions(f"name = '{self.name}'")),
        )


class Cut(BaseException):
    """The process is killed."""


def cut(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, before: bool) -> None:
    """The process ends right before or right after a call."""
    call = getattr(target, name)

    def ends(*args: Any, **kwargs: Any) -> Any:
        if not before:
            call(*args, **kwargs)
        raise Cut

    monkeypatch.setattr(target, name, ends)
