"""Commands on finished runs: report, compare, export, chat and ab."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel
from support.data_files import write_pairs
from transformers import AutoModelForCausalLM
from zenml.client import Client

from pipelines.dpo import dpo_pipeline
from posttrain.cli.main import main
from posttrain.evaluation import scoring as _scoring

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder) -> tuple[str, ...]:
    """Two runs that differ in beta."""
    folder = tmp_path_factory.mktemp("commands")
    names = []
    for beta in (0.1, 0.4):
        config = {
            "name": "commands",
            "model": {"base": str(tiny_folder), "method": "lora"},
            "data": {"sources": [{"path": str(write_pairs(folder / "pairs.jsonl"))}], "test_size": 0.3},
            "sft": {"max_steps": 2, "max_length": 64},
            "dpo": {"max_steps": 2, "max_length": 64, "max_prompt_length": 48, "beta": beta},
            "evaluation": {"generations": {"n": 3, "max_new_tokens": 6}},
            "tracking": {"experiment": "commands"},
        }
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump({"parameters": {"config": config}}))
        names.append(dpo_pipeline.with_options(config_path=str(path))().name)
    return tuple(names)


def call(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return result.output


def test_report_writes_the_page_of_the_named_run(runs, tmp_path):
    call("report", runs[0], "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"<h1>{runs[0]}</h1>" in page
    assert "<h2>Answers</h2>" in page
    assert "cannot be written" in refused("report", runs[0], "--html", tmp_path / "no" / "page.html")


def test_the_dashboard_and_the_command_show_the_same_page(runs, tmp_path):
    call("report", runs[0], "--html", tmp_path / "page.html")
    (artifact,) = Client().get_pipeline_run(runs[0]).steps["report"].outputs["report"]
    (shown,) = list(artifact.visualizations or [])
    assert Path(shown.uri).read_text() == (tmp_path / "page.html").read_text()


def test_compare_prints_the_differences_of_two_runs(runs):
    printed = " ".join(call("compare", *runs).split())
    assert "dpo.beta 0.1 0.4" in printed
    assert "Same: data, code, base, packages" in printed
    assert re.search(r"over the first, on the \d+ test pairs of both runs: ", printed)
    assert "no such run" in refused("compare", runs[0], "no-such-run")


def test_export_finds_a_version_by_each_of_its_names(runs, tmp_path):
    """Neither run is promoted, so none is in production."""
    version = Client().get_pipeline_run(runs[1]).steps["train_dpo"].outputs["dpo_checkpoint"][0]
    number = max(found.number for found in Client().list_model_versions(model="commands").items)
    call("export", f"dpo_checkpoint:{version.version}", tmp_path / "a")
    call("export", f"commands:{number}", tmp_path / "b")
    call("export", Path(version.uri) / "files", tmp_path / "c")
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert len(weights) == 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    lineage = json.loads((tmp_path / "a" / "lineage.json").read_text())
    assert lineage["run"] == runs[1]
    assert lineage["models"]["dpo"] == version.run_metadata["digest"]
    call("export", f"dpo_checkpoint:{version.version}", tmp_path / "d", "--adapter")
    assert (tmp_path / "d" / "adapter_model.safetensors").exists()
    assert "no such model" in refused("export", "commands:99", tmp_path / "e")
    assert "no such model" in refused("export", "nothing", tmp_path / "e")


def test_chat_shows_sft_and_dpo_side_by_side(runs):
    printed = call("chat", "--prompt", "My lamp is broken.", "--max-new-tokens", 4)
    assert [line.split(":")[0] for line in printed.splitlines() if ":" in line] == ["SFT", "DPO"]


def test_models_with_the_same_answers_give_nothing_to_choose_from(runs, tmp_path):
    message = refused("ab", "export", tmp_path / "ab.html", "--run", runs[1])
    assert "SFT and DPO gave the same answer to all 3 prompts, so there is nothing to choose" in message
    assert not (tmp_path / "ab.html").exists()


def test_trace_names_the_models_that_were_trained_on_a_row(runs, tmp_path):
    preferences = Client().get_pipeline_run(runs[0]).steps["load_preferences"].outputs["preferences"][0].load()
    row, held_out = preferences.train[3], preferences.test[0]
    found = call("trace", row["id"])
    assert found.startswith("1 rows found in ")
    assert f"{row['id']}  {row['source']}  preferences, train: {row['prompt'][0]['content']}" in found
    for name in ("sft_checkpoint", "dpo_checkpoint"):
        assert re.search(rf"trained on it: {name}:\d+ \(run {runs[0]}\)", found), found
    assert re.search(rf"trained on it: dpo_checkpoint:\d+ \(run {runs[1]}\)", found), found
    by_text = call("trace", row["chosen"][0]["content"].upper())  # other tests' data may have the text too
    assert set(found.splitlines()[1:]) <= set(by_text.splitlines())
    (tmp_path / "erased.txt").write_text(held_out["prompt"][0]["content"])
    assert "preferences, test" in (of_file := call("trace", "--file", tmp_path / "erased.txt"))
    assert "no stored model was trained on it" in of_file
    assert call("trace", "nobody ever wrote this").startswith("0 rows found in ")


def test_a_report_that_another_version_stored_is_one_line(runs, monkeypatch):
    class Figures(BaseModel):
        newer: int

    monkeypatch.setattr(_scoring, "Figures", Figures)
    message = f"run {runs[0]} was stored by another version of posttrain, whose Figures this version cannot read (newer: Field req"
    assert message in refused("report", runs[0])


def test_why_and_history_tell_what_the_runs_of_a_model_did(runs, tmp_path):
    told = call("why", runs[1])
    assert told.startswith(f"Run {runs[1]}: ")
    assert f"before it: {runs[0]}" in told.replace("\n", " ")
    assert "is not one of" not in told
    assert "no such run" in refused("why", "nothing-of-the-kind")
    told = json.loads(call("history", "commands", "--json"))
    assert [night["name"] for night in told["nights"]][:2] == list(runs)
    assert [night["record"]["stage"] for night in told["nights"]][:2] == ["dpo", "dpo"]
    assert "History of commands" in call("history", "commands")
    call("history", "commands", "--html", tmp_path / "history.html")
    assert runs[1] in (tmp_path / "history.html").read_text()
    assert "nobody: no run of a model of this name (known: " in refused("history", "nobody")
