"""Old runs give their space back; what production or a lineage needs stays."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from zenml import pipeline, step
from zenml.client import Client
from zenml.models import PipelineRunResponse

import materializers  # noqa: F401 (registers them)
from posttrain.cli.main import main
from posttrain.evaluation.gate.champion import Champion
from posttrain.evaluation.gate.decision import Promotion
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.orchestration import pruning
from posttrain.orchestration.model_versions.registry import JudgedModel, settle
from posttrain.orchestration.running_step.step_training import CHECKPOINTS
from posttrain.tracking import Tracker, default_tracking_uri

pytestmark = pytest.mark.slow

BASE = Base(id="some/base", revision=None, digest="b")


@step(enable_cache=False)
def make_checkpoint(folder: str) -> Annotated[Checkpoint, "dpo_checkpoint"]:
    return Checkpoint.load(Path(folder))


@step
def make_base(number: int) -> Annotated[Base, "base"]:
    return Base(id=f"base-{number}", revision=None, digest="b")


@pipeline
def prunable(folder: str, number: int) -> None:
    make_checkpoint(folder)
    make_base(number)


def files() -> set[Path]:
    store = Path(Client().active_stack.artifact_store.path)
    return {path for path in store.rglob("*") if path.is_file()}


def names() -> set[str]:
    return {run.name for run in Client().list_pipeline_runs(pipeline="prunable").items}


def test_only_what_nothing_needs_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "PIPELINES", ("prunable",))

    def run(number: int, base: int, promoted: bool | None = None) -> PipelineRunResponse:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_text(f"weights {number}" * 1000)
        about: dict[str, Any] = {"stage": "dpo", "kind": "full", "base": BASE, "parent": None, "template": ""}
        seal(folder, [], **about, stop_ids=[0], metrics={})
        done = prunable(str(folder), base)
        assert done is not None
        tracker = Tracker(default_tracking_uri(), "pruning", str(done.id), done.name)
        with tracker.parent("make_checkpoint"):
            pass
        if promoted is not None:
            candidate = done.steps["make_checkpoint"].output
            promotion = Promotion(promoted=promoted, opponent="sft", reasons=["some reason"])
            settle(JudgedModel("pruned", f"dpo-{number}", promotion, Champion(), candidate), done, tracker)
        return done

    promoted = run(1, base=1, promoted=True)
    origin = run(2, base=2)  # its base is taken from the cache by the last run
    refused = run(3, base=3, promoted=False)
    forgotten = run(4, base=4)
    challenger = run(5, base=5, promoted=False)
    last = run(6, base=2)
    assert last.steps["make_base"].original_step_run_id
    interrupted = Path(Client().active_stack.artifact_store.path, CHECKPOINTS, "dpo-0123", "step-1")
    interrupted.mkdir(parents=True)
    (interrupted / "model.safetensors").write_text("half")

    gone = {
        Path(run.steps[name].output.uri) for run in (refused, forgotten) for name in ("make_checkpoint", "make_base")
    }
    before = files()
    dry = CliRunner().invoke(main, ["prune", "--keep", "1", "--dry-run"])
    assert dry.output.startswith("Would delete 2 runs, 4 artifacts and 1 interrupted trainings: 0.0 MB"), dry.output
    assert files() == before
    assert len(names()) == 6

    done = CliRunner().invoke(main, ["prune", "--keep", "1"])
    assert done.output.startswith("Deleted 2 runs, 4 artifacts and 1 interrupted trainings"), done.output
    assert "2 runs in MLflow are marked as deleted" in done.output
    assert names() == {kept.name for kept in (promoted, origin, challenger, last)}
    assert not any(folder in path.parents for folder in gone for path in files())
    for kept in (promoted, origin, challenger, last):
        for name in ("make_checkpoint", "make_base"):
            kept.steps[name].output.load()  # compared with its digests
    assert not interrupted.exists()
    mlflow = MlflowClient()
    experiment = mlflow.get_experiment_by_name("pruning")
    assert experiment
    left = {found.info.run_name for found in mlflow.search_runs([experiment.experiment_id])}
    assert left == {kept.name for kept in (promoted, origin, challenger, last)}
    assert CliRunner().invoke(main, ["prune", "--keep", "1"]).output.startswith("Deleted 0 runs, 0 artifacts")
