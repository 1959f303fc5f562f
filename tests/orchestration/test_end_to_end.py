"""Whole runs on files: the shipped configs' own values, a changed row, DPO alone, and what MLflow keeps of it all."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from support.data_files import write_instructions, write_pairs
from support.paths import ROOT
from zenml.client import Client
from zenml.enums import ExecutionStatus, StackComponentType
from zenml.models import PipelineRunResponse

from pipelines.dpo import dpo_pipeline
from posttrain.evaluation.gate.decision import Promotion
from posttrain.orchestration.finished_runs import read_report
from posttrain.orchestration.history.why import explain_run
from posttrain.training import sft

pytestmark = pytest.mark.slow


def run(folder: Path, config: dict[str, Any]) -> PipelineRunResponse:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"parameters": {"config": config}}))
    done = dpo_pipeline.with_options(config_path=str(path))()
    assert done is not None
    assert done.status == ExecutionStatus.COMPLETED
    return done


def worked(done: PipelineRunResponse) -> set[str]:
    return {name for name, step in done.steps.items() if step.status == ExecutionStatus.COMPLETED}


def mlflow_runs(experiment: str) -> list[Run]:
    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


@pytest.mark.parametrize("name", ["handbook", "modern_llm"])
def test_the_peers_values_run_the_whole_path(name: str, tmp_path: Path, tiny_folder: Path) -> None:
    """Their learning rates, schedules, adapters, batches, templates and bf16; model, data and sizes are ours."""
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())["parameters"]["config"]
    config["model"]["base"] = str(tiny_folder)
    config["data"] |= {"sources": [{"path": str(write_pairs(tmp_path / "pairs.jsonl"))}], "test_size": 0.3}
    config["data"]["validation_size"] = 0.1
    config["sft"]["dataset"] = {"path": str(write_instructions(tmp_path / "instructions.jsonl"))}
    config["tracking"] = {"experiment": name}
    for stage in ("sft", "dpo"):
        config[stage] |= {
            "max_steps": 3,
            "warmup_steps": 1,
            "eval_steps": 2,
            "optimizer": "adamw",
        }  # 8-bit Adam needs CUDA
    report = read_report(run(tmp_path, config).id).as_dict()
    assert report["n_pairs"] > 5
    assert set(report["stages"]) == {"base", "sft", "dpo"}
    figures = {"likelihood_accuracy", "normalised_accuracy", "implicit_accuracy", "true_agreement"}
    for stage in report["stages"].values():
        assert figures <= set(stage)
        assert all(set(stage[figure]) == {"value", "low", "high"} for figure in figures)
    assert report["stages"]["sft"]["implicit_accuracy"]["value"] is None
    assert 0 <= report["stages"]["dpo"]["implicit_accuracy"]["value"] <= 1
    assert isinstance(report["promotion"]["promoted"], bool)
    assert report["promotion"]["reasons"]
    assert report["data"]["n_read"] == report["data"]["n_kept"] + report["data"]["n_dropped"] == 60
    json.dumps(report)
    (dpo,) = [r for r in mlflow_runs(name) if r.info.run_name.startswith("train_dpo")]
    first = MlflowClient().get_metric_history(dpo.info.run_id, "train/loss")[0]
    assert (first.step, round(first.value, 2)) == (1, 0.69)


def test_a_changed_row_reruns_the_steps_that_depend_on_it(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    config = {
        "name": "rows",
        "model": {"base": str(tiny_folder)},
        "data": {"sources": [{"path": str(pairs)}], "test_size": 0.3, "validation_size": 0.1},
        "sft": {"max_steps": 2, "max_length": 64},
        "dpo": {"max_steps": 2, "max_length": 64, "max_prompt_length": 48},
        "tracking": {"experiment": "rows"},
    }
    everything = {"train_sft", "score_reference", "train_dpo", "evaluate", "promote"}
    with monkeypatch.context() as generous:
        verdict = Promotion(promoted=True, opponent="sft", reasons=["well done"])
        generous.setattr("posttrain.evaluation.gate.decision.decide", lambda *_: verdict)
        first = run(tmp_path, config)
    assert everything <= worked(first)
    n_pairs = read_report(first.id).figures.n_pairs

    pairs.touch()  # a new time stamp is no change
    again = run(tmp_path, config)
    assert not everything & worked(again)
    told = Client().get_pipeline_run(again.id)
    assert (told.run_metadata["outcome"], told.run_metadata["figures_of"]) == ("unchanged", first.name)
    assert [tag.name for tag in told.tags] == ["unchanged"]
    assert not Client().get_pipeline_run(first.id).tags
    new, old = (next(r for r in mlflow_runs("rows") if r.info.run_name == done.name) for done in (again, first))
    results = [{k: v for k, v in r.data.metrics.items() if not k.startswith("cost")} for r in (new, old)]
    assert results[0] == results[1]
    assert old.data.metrics["cost_train_dpo/tokens"] > 0
    assert new.data.metrics["cost/tokens"] == 0
    assert "acc/dpo" in new.data.metrics
    kept = {key: old.data.tags[key] for key in ("promoted", "reasons", "findings")}
    assert {"outcome": "unchanged", "figures_of": first.name, **kept}.items() <= new.data.tags.items()

    write_pairs(pairs, n=80)  # new rows: trained, and held against the production model on today's test pairs
    train_sft = sft.train_sft
    with monkeypatch.context() as changing:  # under the run, whose steps have what the first one has stored
        changing.setattr(sft, "train_sft", lambda *inputs: (pairs.write_text("not JSON"), train_sft(*inputs))[1])
        grown = run(tmp_path, config)
    write_pairs(pairs, n=80)
    assert everything <= worked(grown)
    explained = explain_run(grown.name)
    assert explained.earlier == again.name
    assert {source: len(ids) for source, ids in explained.rows.added.items()} == {f"{tmp_path.name}/pairs": 20}
    assert explained.rows.removed == {}
    assert explained.files == [f"{pairs}: other content, 60 -> 80 rows"]
    assert {step.name: step.reasons for step in explained.steps}["tokenise"] == ["the rows changed"]
    outcome = read_report(grown.id)
    assert outcome.figures.n_pairs > n_pairs
    assert outcome.figures.digests["champion"] == read_report(first.id).figures.digests["dpo"]
    assert (outcome.figures.opponent, outcome.promotion.opponent) == ("champion", "champion")
    assert outcome.unchanged_since is None

    # DPO alone, from the folder of an earlier SFT checkpoint
    folder = str(Path(first.steps["train_sft"].outputs["sft_checkpoint"][0].uri) / "files")
    alone = copy.deepcopy(config) | {"finetuning_type": "dpo"}
    del alone["sft"]
    alone["dpo"]["start"] = folder
    done = run(tmp_path, alone)
    assert "train_sft" not in done.steps
    assert read_report(done.id).figures.stages["dpo"] is not None

    # SFT alone: held against the base
    only_sft = run(tmp_path, copy.deepcopy(config) | {"finetuning_type": "sft"})
    report = read_report(only_sft.id)
    assert report.figures.stages["dpo"] is None
    assert "SFT ranks" in report.promotion.reasons[0]


@pytest.mark.soak
def test_a_killed_run_is_resumed_by_the_next(
    tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """kill -9 in the midst of DPO: the next run of the same config goes on from there, and ends with the same model."""
    stage = {"max_length": 64, "batch_size": 4}
    config = {
        "name": "killed",
        "model": {"base": str(tiny_folder)},
        "data": {
            "sources": [{"path": str(write_pairs(tmp_path / "pairs.jsonl"))}],
            "test_size": 0.3,
            "validation_size": 0.1,
        },
        "sft": {**stage, "max_steps": 2},
        "dpo": {**stage, "max_steps": 80, "max_prompt_length": 48},
        "checkpoints": {"interval_s": 0},
        "tracking": {"experiment": "killed"},
    }
    document = {"parameters": {"config": config}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    zenml = Path(sys.executable).with_name("zenml")
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(
            [zenml, "pipeline", "run", "dpo_pipeline", "-c", tmp_path / "run.yaml"],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        store = Path(Client().active_stack.artifact_store.path) / "training-checkpoints"
        while not list(store.glob("dpo-*/step-*/manifest.json")):
            assert first.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        first.kill()
        first.wait()

    second = run(tmp_path, config)
    assert "DPO goes on from step" in capfd.readouterr().out
    assert {"train_sft"}.isdisjoint(worked(second))
    assert not list(store.iterdir())

    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    (undisturbed / "run.yaml").write_text(yaml.safe_dump({**document, "enable_cache": False}))
    third = dpo_pipeline.with_options(config_path=str(undisturbed / "run.yaml"))()
    assert third is not None
    assert "goes on from step" not in capfd.readouterr().out
    digests = [done.steps["train_dpo"].outputs["dpo_checkpoint"][0].load().digest for done in (second, third)]
    assert digests[0] == digests[1]
    states = {r.info.status for r in mlflow_runs("killed")}
    assert states == {"FINISHED", "KILLED"}


def test_mlflow_has_a_parent_run_and_a_nested_run_for_each_stage(tmp_path: Path, tiny_folder: Path) -> None:
    config = {
        "name": "tracked",
        "model": {"base": str(tiny_folder), "method": "lora"},
        "data": {
            "sources": [{"path": str(write_pairs(tmp_path / "pairs.jsonl"))}],
            "test_size": 0.3,
            "validation_size": 0.1,
        },
        "sft": {"max_steps": 3, "max_length": 64},
        "dpo": {"max_steps": 4, "max_length": 64, "max_prompt_length": 48, "beta": 0.2},
        "tracking": {"experiment": "tracked"},
    }
    done = run(tmp_path, config)
    runs = {r.info.run_name: r for r in mlflow_runs("tracked")}
    assert set(runs) == {done.name, f"train_sft of {done.name}", f"train_dpo of {done.name}"}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    parent = runs[done.name]
    for stage, n_steps in (("train_sft", 3), ("train_dpo", 4)):
        nested = runs[f"{stage} of {done.name}"]
        assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
        client = MlflowClient()
        for metric in ("train/loss", "train/learning_rate", "train/grad_norm"):
            history = client.get_metric_history(nested.info.run_id, metric)
            assert [point.step for point in history] == list(range(1, n_steps + 1)), metric
    dpo = runs[f"train_dpo of {done.name}"].data.metrics
    assert {"train/accuracy", "train/margin", "train/reward_chosen", "train/reward_rejected"} <= set(dpo)
    assert parent.data.params["dpo.beta"] == "0.2"
    assert {"data.digest", "code.digest", "versions.trl", "versions.zenml"} <= set(parent.data.params)
    assert parent.data.metrics["acc/dpo"] == pytest.approx(
        read_report(done.id).figures.stages["dpo"].likelihood_accuracy.value
    )
    assert {i.dataset.name for i in parent.inputs.dataset_inputs} == {
        f"preferences/{split}" for split in ("train", "validation", "test")
    }
    artifacts = {a.path for a in MlflowClient().list_artifacts(parent.info.run_id)}
    reports = {f"{name}_report.{suffix}" for name in ("data", "token") for suffix in ("json", "html")}
    assert artifacts == {"config.json", "evaluation.json", "figures", "history.html", "report"} | reports
    assert parent.data.tags["promoted"] in ("true", "false")


def test_a_failed_run_leaves_no_mlflow_run_open(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """max_length leaves no room for any response, which only shows once the prompts are tokens."""
    config = {
        "model": {"base": str(tiny_folder)},
        "data": {"sources": [{"path": str(write_pairs(tmp_path / "pairs.jsonl"))}], "test_size": 0.3},
        "sft": {"max_steps": 1, "max_length": 64},
        "dpo": {"max_steps": 1, "max_length": 8, "max_prompt_length": 8},
        "tracking": {"experiment": "failed"},
    }
    with pytest.raises(click.ClickException, match=r"no training pair has room for a response"):
        run(tmp_path, config)
    status = {r.info.run_name.split(" of ")[0]: r.info.status for r in mlflow_runs("failed")}
    last = Client().list_pipeline_runs(sort_by="desc:created", size=1).items[0]
    assert status == {last.name: "FAILED", "train_sft": "FINISHED", "train_dpo": "FAILED"}
    assert last.status == ExecutionStatus.FAILED


def test_the_tracker_of_the_active_stack_is_used(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/not-this-one.db")  # and is put back afterwards
    client = Client()
    default = client.active_stack_model
    client.create_stack_component(
        name="tracker", flavor="mlflow", component_type=StackComponentType.EXPERIMENT_TRACKER, configuration={}
    )
    parts = {kind: components[0].id for kind, components in default.components.items()}
    client.create_stack("tracked", {**parts, StackComponentType.EXPERIMENT_TRACKER: "tracker"})
    client.activate_stack("tracked")
    try:
        uri = client.active_stack.experiment_tracker.get_tracking_uri()
        done = run(
            tmp_path,
            {
                "model": {"base": str(tiny_folder)},
                "data": {"sources": [{"path": str(write_pairs(tmp_path / "pairs.jsonl"))}], "test_size": 0.3},
                "finetuning_type": "sft",
                "sft": {"max_steps": 1, "max_length": 64},
                "seed": 7,  # which no other test uses: else training may be served from the cache
                "tracking": {"experiment": "of-the-stack"},
            },
        )
    finally:
        client.activate_stack(default.id)
        mlflow.set_tracking_uri(None)  # ZenML set it for the whole process
    there = MlflowClient(uri)
    names = {r.info.run_name for r in there.search_runs([there.get_experiment_by_name("of-the-stack").experiment_id])}
    assert names == {done.name, f"train_sft of {done.name}"}
    assert not (tmp_path / "not-this-one.db").exists()
