"""A registered version is a model of MLflow, which MLflow itself loads, without a second copy of its weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
import yaml
from mlflow import MlflowClient
from support.stages import sft_on
from zenml.client import Client

from materializers import CheckpointMaterializer
from posttrain.config import DataSection, ModelSection, SftSection
from posttrain.data.loader import load_preferences
from posttrain.models.base import resolve_base
from posttrain.models.loading import load_chat, load_model
from posttrain.orchestration.running_step.run_figures import log_datasets
from posttrain.tracking import Tracker, default_tracking_uri
from posttrain.tracking.mlflow_registry import ModelRegistry, Registration
from posttrain.tracking.mlmodel import StoredModel, mlmodel
from posttrain.training.trainer import TrainingJob

IDS = torch.arange(1, 41).reshape(4, 10)


@pytest.fixture(scope="module", params=["full", "lora"])
def registered(request: Any, tiny_folder: Path, preferences: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained checkpoint, stored as an artifact and registered as the champion of a model."""
    folder = tmp_path_factory.mktemp(request.param)
    section = ModelSection(base=str(tiny_folder), precision="fp32", method=request.param, chat_template="plain")
    base = resolve_base(section)
    sft = SftSection(max_steps=2, max_length=96, learning_rate=2e-2)
    checkpoint = sft_on(preferences, sft, TrainingJob(base, section, 0, folder / "sft"))
    artifact = f"{Client().active_stack.artifact_store.path}/{request.param}"
    Client().active_stack.artifact_store.makedirs(artifact)
    CheckpointMaterializer(artifact).save(checkpoint)
    uri, experiment = default_tracking_uri(), f"models-{request.param}"
    tracker = Tracker(uri, experiment, f"id-{request.param}", "run")
    with tracker.parent("evaluate") as stage:
        stage.log_params({"dpo": {"beta": 0.1}, "data": {"test_size": 0.1}})
        stage.log_metrics({"dpo_accuracy": 0.75})
        stage.log_metrics({"dpo_accuracy": 0.5}, step=1)
    name = f"loaded-{request.param}"
    registry = ModelRegistry(uri, name)
    registration = Registration(
        version="dpo-1", source=f"{artifact}/files", tags={"zenml.model": name}, description="",
        experiment=experiment, pipeline_run=f"id-{request.param}",
    )  # fmt: skip
    number = registry.register(registration)
    registry.set_alias("champion", number)
    return SimpleNamespace(**{**locals(), "client": MlflowClient(uri)})


def test_mlflow_loads_the_champion(registered: Any) -> None:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(registered.uri)
    try:
        loaded: Any = mlflow.transformers.load_model(f"models:/{registered.name}@champion")
    finally:
        mlflow.set_tracking_uri(before)
    expected = load_model(registered.base, registered.section, registered.checkpoint).eval()
    with torch.no_grad():
        found, ours = (model(input_ids=IDS).logits for model in (loaded.model.eval(), expected))
    assert (found - ours).abs().max() < 1e-5 * ours.abs().max()
    chat = load_chat(registered.base, registered.section, registered.checkpoint)
    assert loaded.tokenizer.chat_template == chat.tokenizer.chat_template
    answer = loaded([{"role": "user", "content": "Hello"}], max_new_tokens=4, do_sample=False)
    assert answer[0]["generated_text"][-1]["role"] == "assistant"


def test_its_weights_are_stored_once(registered: Any) -> None:
    weights = list(Path(registered.artifact).rglob("*.safetensors"))
    assert [path.parent.name for path in weights] == ["files"]
    version = registered.client.get_model_version_by_alias(registered.name, "champion")
    assert version.source == registered.artifact
    experiment = registered.client.get_experiment_by_name(registered.experiment)
    assert not list(Path(experiment.artifact_location.removeprefix("file://")).rglob("*.safetensors"))


def logged_models(registered: Any) -> list[Any]:
    experiment = registered.client.get_experiment_by_name(registered.experiment)
    return list(registered.client.search_logged_models([experiment.experiment_id]))


def test_its_logged_model_has_settings_and_metrics(registered: Any) -> None:
    [model] = logged_models(registered)
    assert (model.name, str(model.status)) == ("dpo-1", "READY")
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": registered.name, "version": 1}]
    assert model.params == {"dpo.beta": "0.1"}
    assert {metric.key: metric.value for metric in model.metrics} == {"dpo_accuracy": 0.5}
    run = registered.client.get_run(model.source_run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    history = registered.client.get_metric_history(run.info.run_id, "dpo_accuracy")
    assert [(point.step, point.value) for point in history] == [(0, 0.75), (1, 0.5)]  # and no point twice


def test_an_interrupted_registration_makes_no_second_logged_model(registered: Any) -> None:
    if registered.request.param == "lora":
        return
    client, name = registered.client, registered.name
    client.delete_registered_model_alias(name, "champion")
    client.delete_model_version(name, registered.number)
    number = registered.registry.register(registered.registration)
    registered.registry.set_alias("champion", number)
    assert len(logged_models(registered)) == 1


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("tokenizer", {"source_model_name": "org/base", "source_model_revision": "c" * 40}),
        ("own.jinja", {"local_base_model_path": "org/base"}),
    ],
)
def test_an_adapter_names_its_base_on_the_hub(template: str, expected: dict[str, str]) -> None:
    flavor = yaml.safe_load(mlmodel(StoredModel(True, "org/base", "c" * 40, template)))["flavors"]["transformers"]
    assert expected.items() <= flavor.items()
    assert "model_binary" not in flavor


def test_every_source_is_an_input_of_the_run(tmp_path: Path) -> None:
    """The rows of a file have its name without the folder as their source, or one from their content."""
    rows = [{"prompt": f"Question {n}?", "chosen": f"Good {n}", "rejected": f"Bad {n}"} for n in range(40)]
    for name in ("one", "two"):
        text = "".join(json.dumps({**row, "prompt": f"{name}: {row['prompt']}"}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    sources = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    for given, names in ((sources[:1], [""]), (sources, [f"/{path}" for path in sources])):
        section = DataSection.model_validate({"sources": given, "test_size": 0.25, "validation_size": 0.25})
        preferences, report = load_preferences(section)
        tracker = Tracker(default_tracking_uri(), "datasets", f"id-{len(given)}", f"run-{len(given)}")
        with tracker.parent("load_preferences") as stage:
            log_datasets(stage, preferences, report)
        client = MlflowClient(tracker.uri)
        experiment = client.get_experiment_by_name("datasets")
        [run] = client.search_runs([experiment.experiment_id], f"attributes.run_name = 'run-{len(given)}'")
        found = {i.dataset.name: json.loads(i.dataset.source)["uri"] for i in run.inputs.dataset_inputs}
        splits = ("train", "validation", "test")
        assert found == {
            f"preferences/{split}{name}": path for split in splits for name, path in zip(names, given, strict=True)
        }
