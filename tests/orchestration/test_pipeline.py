"""The pipeline as a user meets it: one file decides, a mistake costs one line, and nothing is trained twice."""

import errno
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from support.data_files import write_rows
from support.paths import ROOT
from zenml.client import Client
from zenml.enums import ExecutionStatus, ModelStages
from zenml.models import PipelineRunResponse

from pipelines.dpo import dpo_pipeline
from posttrain.errors import UserError
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.gate.rejection import Rejection
from posttrain.orchestration.caching import cache_key as _code
from posttrain.orchestration.finished_runs import read_report
from posttrain.orchestration.history.why import explain_run
from posttrain.orchestration.model_versions.registry import digest_of
from posttrain.orchestration.model_versions.rejections import lift, reject
from posttrain.orchestration.project import step_names
from posttrain.orchestration.run_file import read_run_file
from posttrain.orchestration.running_step.stored_files import DamagedArtifact
from posttrain.reporting.past_runs.explanation import explanation_lines

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"sources": [{"path": "demo", "limit": 101}], "test_size": 0.2},  # data that no other test has
    "sft": {"max_steps": 1, "batch_size": 2},
    "dpo": {"max_steps": 1, "batch_size": 2},
    "evaluation": {"generations": {"n": 4, "max_new_tokens": 4}},
}

OTHER_DATA = {"sources": [{"path": "demo", "limit": 100}], "test_size": 0.2}


def written(folder: Path, config: Any = None, **zenml: Any) -> str:
    """The path of a run's file with these settings."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"parameters": {"config": config or {}}, **zenml}), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_a_mistake_is_one_line_and_no_stack_trace(tmp_path: Path) -> None:
    zenml = Path(sys.executable).with_name("zenml")
    path = written(tmp_path, {"dpo": {"betta": 0.1}})
    done = subprocess.run(
        [zenml, "pipeline", "run", "dpo_pipeline", "-c", path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"{path}: dpo.betta: unknown key (did you mean 'beta'?)" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("zenml", "message"),
    [
        (
            {"steps": {"train_dop": {}}},
            "steps.train_dop: unknown step (known: benchmark_champion, benchmark_model, collect,",
        ),
        ({"steps": {"train_dpo": {"setings": {}}}}, "steps.train_dpo.setings: unknown key"),
        ({"steps": {"train_dpo": {"parameters": {"seed": 1}}}}, "steps.train_dpo.parameters: not allowed"),
        ({"steps": {"train_dpo": {"cache_policy": {"expires_after": 9}}}}, "steps.train_dpo.cache_policy: not allowed"),
        ({"steps": {"load_preferences": {"enable_cache": True}}}, "enable_cache: true is not allowed"),
        ({"enable_cache": True}, "enable_cache: true is not allowed: it would also take the data from the cache"),
        ({"enable_step_logs": "maybe"}, "enable_step_logs: 'maybe' is not allowed"),
        ({"shedule": {}}, "shedule: unknown key"),
        (
            {"run_name": "nightly"},
            "run_name: 'nightly' would be the name of every run, and ZenML takes a name only once",
        ),
        ({"schedule": {"cron_expression": "0 3 * * 1"}}, "stack 'default' cannot run schedules"),
    ],
)
def test_what_zenml_would_ignore_is_an_error(tmp_path: Path, zenml: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_run_file(written(tmp_path, **zenml), ROOT)


def test_each_step_has_a_file_of_its_name() -> None:
    for name in step_names(ROOT):
        assert getattr(importlib.import_module(f"steps.{name}"), name).name == name


def test_without_a_file_the_demo_runs() -> None:
    demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    assert dpo_pipeline.with_options().configuration.parameters == demo["parameters"]


def test_a_file_replaces_the_demo_and_is_not_merged_into_it(tmp_path: Path) -> None:
    path = written(tmp_path, {"dpo": {"beta": 0.2}})
    assert dpo_pipeline.with_options(config_path=path).configuration.parameters == {"config": {"dpo": {"beta": 0.2}}}


def test_the_run_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our code: ZenML reads it for itself."""
    load, callers = yaml.load, []

    def counting(stream: Any, Loader: Any) -> Any:
        found = load(stream, Loader)
        if isinstance(found, dict) and "parameters" in found:
            callers.append(sys._getframe(1).f_globals["__name__"])
        return found

    path = written(tmp_path, {"sweep": {"grid": {"beta": [0.1, 0.2]}}}, steps={"train_point": {}})
    monkeypatch.setattr(yaml, "load", counting)
    with pytest.raises(click.ClickException, match="dpo_pipeline trains a single point"):
        dpo_pipeline.with_options(config_path=path)()
    assert [name for name in callers if not name.startswith("zenml.")] == ["posttrain.config.load"]


BEGIN = "resolve_base preflight load_preferences"


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, f"{BEGIN} tokenise train_sft score_reference train_dpo"),
        ({"finetuning_type": "sft"}, f"{BEGIN} tokenise train_sft"),
        (
            {"finetuning_type": "dpo", "dpo": {"start": "FOLDER"}},
            f"{BEGIN} import_checkpoint tokenise score_reference train_dpo",
        ),
        (
            {"sft": {"dataset": {"path": "instructions.jsonl"}}},
            f"{BEGIN} load_instructions tokenise train_sft score_reference train_dpo",
        ),
        (
            {"finetuning_type": "sft", "evaluation": {"sets": [{"path": "bench.jsonl"}]}},
            f"{BEGIN} tokenise train_sft load_pair_sets",
        ),
    ],
    ids=["both", "sft", "dpo", "instructions", "sets"],
)
def test_the_finetuning_type_decides_which_steps_there_are(
    tmp_path: Path, tiny_folder: Path, config: dict[str, Any], steps: str
) -> None:
    if "dpo" in config:
        config = {**config, "dpo": {"start": str(tiny_folder)}}
    pipeline = dpo_pipeline.with_options(config_path=written(tmp_path, config))
    pipeline.prepare()
    verdict = ["find_champion", "generate", "evaluate", "promote", "report", "conclude"]
    assert list(pipeline.invocations) == [*steps.split(), *verdict]


def test_benchmarks_are_loaded_first_and_scored_model_by_model(tmp_path: Path) -> None:
    config = {"evaluation": {"benchmarks": [{"task": "gsm8k"}]}}
    pipeline = dpo_pipeline.with_options(config_path=written(tmp_path, config))
    pipeline.prepare()
    steps = list(pipeline.invocations)
    assert steps[0] == "load_benchmarks"
    assert [name for name in steps[1:] if "benchmark" in name] == [
        "benchmark_base",
        "benchmark_sft",
        "benchmark_dpo",
        "benchmark_champion",
        "compare_benchmarks",
    ]
    assert "benchmarks" in pipeline.invocations["promote"].input_artifacts


@pytest.mark.parametrize(
    "name", ["70007", "sft_checkpoint:70007", "no/such/folder", "0b51e4e2-2a4e-4d4c-8f4c-3f1d1b1f4c11"]
)
def test_a_missing_start_is_one_line(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, {"finetuning_type": "dpo", "dpo": {"start": name}})
    with pytest.raises(click.ClickException, match=f"dpo.start: '{name}' is not a model"):
        dpo_pipeline.with_options(config_path=path)()


def test_a_report_without_a_run_says_what_to_do() -> None:
    with pytest.raises(UserError, match="no such run"):
        read_report("nothing-of-the-kind")


@pytest.mark.slow
def test_a_failing_step_ends_the_run_with_its_message(tmp_path: Path) -> None:
    path = written(tmp_path, {"data": {"sources": [{"path": "demo", "limit": 200}], "max_drop_share": 0.0}})
    with pytest.raises(click.ClickException, match=r"data\.max_drop_share"):
        dpo_pipeline.with_options(config_path=path)()
    assert Client().list_pipeline_runs(sort_by="desc:created", size=1).items[0].status == ExecutionStatus.FAILED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/store/x"), r"the disk is full \(/store/x\): free space"),
        (UserError("\x1b[2Jfirst postgresql://h/db?password=hidden"), r"^\[2Jfirst postgresql://h/db$"),
    ],
)
def test_what_ends_a_step_is_one_line_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    def fails(_: Any) -> None:
        raise error

    monkeypatch.setattr("posttrain.data.loader.load_preferences", fails)
    with pytest.raises(click.ClickException, match=message):
        dpo_pipeline.with_options(config_path=written(tmp_path, TINY))()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_nothing_is_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what depends on a change runs again; a result is registered once."""

    def run(config: dict[str, Any]) -> PipelineRunResponse:
        done = dpo_pipeline.with_options(config_path=written(tmp_path, config))()
        assert done is not None
        return done

    def worked(done: PipelineRunResponse) -> set[str]:
        """Without the preflight, which depends on base and lengths alone: other tests on this store share them."""
        completed = {name for name, step in done.steps.items() if step.status == ExecutionStatus.COMPLETED}
        return completed - {"preflight"}

    def n_versions() -> int:
        return int(Client().list_model_versions(model="tiny").total)

    def outcomes(*runs: PipelineRunResponse) -> list[str]:
        return [str(Client().get_pipeline_run(done.id).run_metadata["outcome"]) for done in runs]

    always = {"load_preferences", "resolve_base", "find_champion", "conclude"}
    first = run(TINY)
    assert worked(first) == always | {
        "tokenise",
        "train_sft",
        "score_reference",
        "train_dpo",
        "generate",
        "evaluate",
        "promote",
        "report",
    }
    assert n_versions() == 1

    again = run(TINY)
    assert worked(again) == always
    assert n_versions() == 1
    assert read_report(again.id).figures == read_report(first.id).figures
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert printed.count(f"Unchanged: nothing was trained; the figures are those of run {first.name}") == 1

    steeper = run({**TINY, "dpo": {**TINY["dpo"], "beta": 0.3}})
    assert worked(steeper) == always | {"train_dpo", "generate", "evaluate", "promote", "report"}
    explained = "\n".join(explanation_lines(explain_run(steeper.name), 200))
    assert (
        f"Compared with the run of model tiny before it: {again.name}\n\nsettings  dpo.beta: 0.1 -> 0.3\n\n"
        in explained
    )
    assert re.search(r"\ntrain_dpo +ran +dpo\.beta 0\.1 -> 0\.3\n", explained), explained
    assert re.search(rf"\ntrain_sft +cached +the result of {first.name}\n", explained)
    nothing = "\n".join(explanation_lines(explain_run(str(again.id)), 200))
    assert "Nothing changed: neither rows nor settings, files, packages or code." in nothing
    records: list[Any] = [Client().get_pipeline_run(done.id).run_metadata["record"] for done in (first, again)]
    assert [record["outcome"] for record in records] == ["refused", "unchanged"]
    assert records[1]["judged_in"] == first.name
    assert records[0]["costs"]["steps"]["train_dpo"]["tokens"] > 0
    assert "train_dpo" not in records[1]["costs"]["steps"]
    assert outcomes(first, again, steeper) == ["trained", "unchanged", "trained"]

    shorter = run({**TINY, "dpo": {**TINY["dpo"], "max_length": 64, "max_prompt_length": 32}})
    # SFT does not depend on DPO's lengths. No pair of the demo is cut by them, so the figures and the verdict stay.
    assert worked(shorter) == always | {"tokenise", "score_reference", "train_dpo", "generate", "evaluate"}
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    n_pairs = shorter.steps["score_reference"].outputs["reference_logps"][0].run_metadata["n_pairs"]
    assert f"Reference: {n_pairs} of {n_pairs} pairs are taken from earlier runs" in printed

    renamed = run({**TINY, "tracking": {"experiment": "another"}})
    assert worked(renamed) == always

    monkeypatch.setattr(
        "posttrain.evaluation.gate.decision.decide",
        lambda *_: Promotion(promoted=True, opponent="sft", reasons=["well done"]),
    )
    other_gate = run({**TINY, "gate": {"max_p_value": 0.5}})
    assert worked(other_gate) == always | {"promote", "report"}
    assert outcomes(renamed, other_gate) == ["unchanged", "judged"]
    champion: Any = Client().get_model_version("tiny", ModelStages.PRODUCTION)
    assert champion.number == n_versions() == 3
    # The model is the champion now, and what it was promoted over has not changed: its verdict stands.
    assert worked(run({**TINY, "gate": {"max_p_value": 0.5}})) == always
    assert champion.run_metadata["judgement"]["reasons"] == ["well done"]
    assert {"sft_checkpoint", "dpo_checkpoint", "evaluation", "preferences"} <= {
        link.artifact_version.name for link in Client().list_model_version_artifact_links(model_version_id=champion.id)
    }

    # Taken out of production, it is refused by the same config, although the verdict was in the cache.
    about = Rejection(model="tiny", version=champion.name, digest=digest_of(champion), reason="answers in French")
    reject(champion, about)
    champion.set_stage(ModelStages.ARCHIVED, force=True)
    rejected = run({**TINY, "gate": {"max_p_value": 0.5}})
    assert worked(rejected) == always | {"promote", "report"}
    assert "was taken out of production" in read_report(rejected.id).promotion.reasons[-1]
    assert not Client().list_model_versions(model="tiny", stage=ModelStages.PRODUCTION).items
    lift(champion, "it was the tokenizer")
    champion.set_stage(ModelStages.PRODUCTION, force=True)

    without_sft = {key: section for key, section in TINY.items() if key != "sft"}
    version = first.steps["train_sft"].outputs["sft_checkpoint"][0].version
    from_sft = run({**without_sft, "finetuning_type": "dpo", "dpo": {**TINY["dpo"], "start": version}})
    # ZenML's cache key depends on where an input comes from; the same weights come out, so the verdict stands.
    assert worked(from_sft) == always | {
        "tokenise",
        "score_reference",
        "train_dpo",
        "evaluate",
        "generate",
        "report",
    }

    monkeypatch.setattr(_code, "step_digest", lambda module: f"{module} was edited")
    assert "train_sft" in worked(run({**TINY, "finetuning_type": "sft"}))


@pytest.mark.slow
def test_a_challenger_is_compared_with_the_champion_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run, again, changed, again, and back to the first: whatever is repeated comes from the cache."""
    monkeypatch.setattr(
        "posttrain.evaluation.gate.decision.decide",
        lambda figures, *_: Promotion(promoted=True, opponent=figures.opponent, reasons=["well done"]),
    )

    def run(beta: float) -> tuple[set[str], Any]:
        config = {**TINY, "name": "rivals", "data": OTHER_DATA, "dpo": {**TINY["dpo"], "beta": beta}}
        done = dpo_pipeline.with_options(config_path=written(tmp_path, config))()
        assert done is not None
        worked = {name for name, step in done.steps.items() if step.status == ExecutionStatus.COMPLETED}
        return worked - {"load_preferences", "resolve_base", "find_champion", "conclude"}, read_report(done.id).figures

    judging = {"generate", "evaluate", "promote", "report"}
    _, first = run(0.15)
    assert first.opponent == "sft"
    assert run(0.15) == (set(), first)

    worked, second = run(0.35)
    assert worked == judging | {"train_dpo"}
    assert second.opponent == "champion"
    assert second.digests["champion"] == first.digests["dpo"]
    assert run(0.35) == (set(), second)

    worked, third = run(0.15)
    assert worked == judging  # it is trained already, but has another rival now
    assert third.digests["champion"] == second.digests["dpo"]
    assert run(0.15) == (set(), third)
    assert len(Client().list_model_versions(model="rivals", stage=ModelStages.PRODUCTION)) == 1


@pytest.mark.soak
def test_a_model_that_stays_the_same_takes_no_benchmark_again(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `benchmarks` is not installed")
    rows = [{"question": f"{i} + {i}?", "choices": [str(2 * i), "none"], "gold": 0} for i in range(1, 9)]
    write_rows(tmp_path / "sums.jsonl", rows)
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "sums.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
    }
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))

    def run(seed: int) -> tuple[set[str], Any]:
        config = {**TINY, "name": "sums", "finetuning_type": "sft", "data": OTHER_DATA, "seed": seed}
        config["evaluation"] = {"generations": {"n": 0}, "benchmarks": [{"task": str(tmp_path / "sums.yaml")}]}
        done = dpo_pipeline.with_options(config_path=written(tmp_path, config))()
        assert done is not None
        worked = {name for name, step in done.steps.items() if step.status == ExecutionStatus.COMPLETED}
        return {name for name in worked if "benchmark" in name}, read_report(done.id)

    worked, first = run(3)
    assert worked == {"load_benchmarks", "benchmark_base", "benchmark_sft", "benchmark_champion", "compare_benchmarks"}
    assert first.benchmarks.tasks["sums"].n_items == 8
    assert run(3)[0] == {"load_benchmarks"}
    worked, second = run(4)
    assert worked == {"load_benchmarks", "benchmark_sft", "compare_benchmarks"}
    assert second.benchmarks.digests["base"] == first.benchmarks.digests["base"]
    assert second.benchmarks.digests["sft"] != first.benchmarks.digests["sft"]


@pytest.mark.slow
def test_a_damaged_or_missing_result_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Although ZenML takes it from its cache, because the database still has it."""
    monkeypatch.setattr(
        "posttrain.evaluation.gate.decision.decide",
        lambda *_: Promotion(promoted=True, opponent="sft", reasons=["well done"]),
    )
    config = {**TINY, "name": "damaged", "finetuning_type": "sft", "data": {**OTHER_DATA, "test_size": 0.25}}
    config["evaluation"] = {"generations": {"n": 0}}

    def run() -> tuple[PipelineRunResponse, set[str]]:
        done = dpo_pipeline.with_options(config_path=written(tmp_path, config))()
        assert done is not None
        return done, {name for name, step in done.steps.items() if step.status == ExecutionStatus.COMPLETED}

    def folder(step: str, name: str) -> Path:
        return Path(first.steps[step].outputs[name][0].uri)

    def digest(done: PipelineRunResponse) -> str:
        return str(done.steps["train_sft"].outputs["sft_checkpoint"][0].run_metadata["digest"])

    first, _ = run()
    always = {"load_preferences", "resolve_base", "find_champion", "conclude"}

    shutil.rmtree(folder("tokenise", "tokens"))  # no step of an unchanged run reads it
    again, worked = run()
    assert worked == always | {"tokenise"}
    assert "artifact tokens version" in caplog.text
    assert ", made by step tokenise of run damaged-" in caplog.text

    (evaluation,) = folder("evaluate", "evaluation").glob("files/*.parquet")
    evaluation.write_bytes(evaluation.read_bytes()[:-1] + b"\0")  # read only when the outcome is printed
    _, worked = run()
    assert worked == always | {"evaluate"}

    weights = folder("train_sft", "sft_checkpoint") / "files" / "model.safetensors"
    weights.unlink()
    last, worked = run()
    assert worked == always | {"train_sft"}
    assert digest(last) == digest(first)
    with pytest.raises(
        DamagedArtifact, match=r"sft_checkpoint version \d+, made by step train_sft .*`zenml pipeline runs delete"
    ):
        again.steps["train_sft"].outputs["sft_checkpoint"][0].load()
