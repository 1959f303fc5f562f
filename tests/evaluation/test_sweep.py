"""A sweep: its grid, the choice among its points, and a whole run in which one point diverges."""

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from rich.console import Console
from support.paths import ROOT
from support.stages import reference_on, sft_on
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from materializers import SweepOutcomeMaterializer, SweepPointMaterializer
from pipelines.dpo import dpo_pipeline
from pipelines.sweep import sweep_pipeline
from posttrain.config import (
    NOT_SWEPT,
    DpoSection,
    EvaluationSection,
    Grid,
    Lengths,
    RunConfig,
    SftSection,
    SweepSection,
    check_config,
    load_config,
    point_label,
)
from posttrain.data.stored import Preferences
from posttrain.errors import UserError
from posttrain.evaluation.sweep import GridPoint, SweepPoint, ValidationScores, choose, train_point
from posttrain.orchestration.finished_runs import read_report
from posttrain.orchestration.run_file import read_run_file
from posttrain.reporting.sweep_report import render_sweep, sweep_picture, sweep_rows
from posttrain.reporting.terminal import print_report
from posttrain.training.trainer import TrainingJob

EVALUATION = EvaluationSection(n_bootstrap=100)


def sweep_of(grid: Any, **config: Any) -> RunConfig:
    return check_config({"sweep": {"grid": grid}, **config}, "c.yaml")


# The grid


def test_every_combination_is_a_point_and_the_rest_is_that_of_dpo() -> None:
    config = sweep_of({"beta": [0.1, "0.5"], "loss_type": ["ipo", ["sigmoid", "sft"]]}, dpo={"epochs": 2})
    assert [point_label(values) for values, _ in config.sweep_points()] == [
        "beta=0.1, loss_type=ipo",
        'beta=0.1, loss_type=["sigmoid", "sft"]',
        "beta=0.5, loss_type=ipo",
        'beta=0.5, loss_type=["sigmoid", "sft"]',
    ]
    for values, section in config.sweep_points():
        assert section == DpoSection(epochs=2, **values)


def test_every_setting_of_dpo_can_be_swept_or_is_refused_with_a_reason() -> None:
    assert set(Grid.model_fields) | set(NOT_SWEPT) == set(DpoSection.model_fields)
    assert not set(Grid.model_fields) & set(NOT_SWEPT)


def test_a_config_without_a_sweep_has_no_points() -> None:
    assert RunConfig().sweep_points() == []


BAD = {
    "unknown setting": ({"betta": [0.1]}, "sweep.grid.betta: unknown key (did you mean 'beta'?)"),
    "out of bounds": ({"beta": [0.1, 99]}, "sweep.grid.beta.1: 99 is not allowed: must be less than or equal to 10"),
    "wrong type": ({"beta": ["x"]}, "sweep.grid.beta.0: 'x' is not allowed: must be a valid number"),
    "boolean for a number": ({"beta": [True]}, "sweep.grid.beta: is true, but the setting does not take a boolean"),
    "one value and no list": ({"beta": 0.1}, "sweep.grid.beta: 0.1 is not allowed: must be a valid list"),
    "no value": ({"beta": []}, "sweep.grid.beta: [] is not allowed: the list should have at least 1 item"),
    "empty grid": ({}, "sweep.grid: is empty: list values for at least one setting of dpo"),
    "duplicate value": ({"beta": [0.1, "0.10"]}, "sweep.grid.beta: lists 0.1 twice"),
    "other tokens": ({"max_length": [64, 128]}, "sweep.grid: max_length changes the tokens that the shared reference"),
    "other starts": ({"start": ["1"]}, "sweep.grid: start is shared by all points"),
    "a point that cannot be": (
        {"loss_type": ["robust", "sigmoid"], "label_smoothing": [0.1]},
        "sweep.grid at loss_type=sigmoid, label_smoothing=0.1: label_smoothing has no effect on loss_type sigmoid",
    ),
}


@pytest.mark.parametrize(("grid", "message"), BAD.values(), ids=BAD.keys())
def test_a_mistake_in_the_grid_is_one_clear_line(grid: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        sweep_of(grid)
    assert message in str(caught.value)
    assert str(caught.value).startswith("c.yaml: ")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"finetuning_type": "sft"}, "finetuning_type is sft, which trains no DPO"),
        ({"data": {"validation_size": 0}}, "data.validation_size is 0"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep_of({"beta": [0.1]}, **config)


def test_the_shipped_sweep_shares_all_before_dpo_with_the_demo() -> None:
    """Same data, model, SFT and lengths, so its SFT and reference are the demo's, from the cache."""
    demo, sweep = (load_config(ROOT / "configs" / f"{name}.yaml") for name in ("demo", "sweep"))
    assert (sweep.data, sweep.model, sweep.sft, sweep.seed) == (demo.data, demo.model, demo.sft, demo.seed)
    assert sweep.dpo.max_length == demo.dpo.max_length
    assert sweep.dpo.max_prompt_length == demo.dpo.max_prompt_length
    assert len(sweep.sweep_points()) == 6


# The choice


def point(
    beta: float, margins: list[float], drift: float = 1.0, reference: tuple[float, ...] = (1, -1, 1, -1)
) -> SweepPoint:
    scores = ValidationScores(
        margins_nats=margins, reference_margins_nats=list(reference), prompts=[0, 1, 2, 3], drift_nats=drift
    )
    return SweepPoint(values={"beta": beta}, scores=scores, failure=None)


FAILED = SweepPoint(values={"beta": 9.0}, scores=None, failure="the loss is nan")
BY_LIKELIHOOD = SweepSection(grid={"beta": [0.1]})
BY_IMPLICIT = SweepSection(grid={"beta": [0.1]}, choose_by="implicit_accuracy")


def test_the_most_accurate_point_is_chosen() -> None:
    """3 of 4 right, a tie counting half, against 2.5; SFT has 2 right. They differ in one pair: p = 1."""
    outcome = choose([FAILED, point(0.1, [1, 1, 0, -1]), point(0.5, [1, 1, 2, -1])], BY_LIKELIHOOD, EVALUATION)
    assert (outcome.chosen, outcome.runner_up, outcome.n_pairs) == (2, 1, 4)
    values = [p.likelihood_accuracy and p.likelihood_accuracy.value for p in outcome.points]
    assert values == [None, 0.625, 0.75]
    assert outcome.sft_accuracy.value == 0.5
    assert outcome.comparison is not None
    assert (outcome.comparison.gain.value, outcome.comparison.p_value) == (0.125, 1.0)
    assert outcome.reason == (
        "beta=0.5, which ranks 12.5 points more pairs correctly by preference accuracy than beta=0.1 (p = 1)"
    )


def test_of_equals_the_point_that_moved_least_is_chosen() -> None:
    points = [point(0.1, [1, 1, -1, -1], 3.0), point(0.2, [-1, -1, 1, 1], 2.0), point(0.5, [1, -1, 1, -1], 2.0)]
    outcome = choose(points, BY_LIKELIHOOD, EVALUATION)
    assert (outcome.chosen, outcome.runner_up) == (1, 2)
    assert outcome.reason == (
        "beta=0.2, which ranks as many pairs correctly as beta=0.5 and has not moved further from SFT (2.00 nats per response "
        "against 2.00)"
    )


def test_the_measure_that_was_asked_for_decides() -> None:
    """The first orders all pairs right; the second gains on SFT in all pairs, the first in none."""
    points = [point(0.1, [1, 1, 1, 1], reference=(2, 2, 2, 2)), point(0.5, [3, 3, 3, -1], reference=(2, 2, 2, -2))]
    assert choose(points, BY_LIKELIHOOD, EVALUATION).chosen == 0
    assert choose(points, BY_IMPLICIT, EVALUATION).chosen == 1


def test_a_single_survivor_is_chosen() -> None:
    outcome = choose([FAILED, point(0.5, [-1, -1, -1, -1])], BY_LIKELIHOOD, EVALUATION)
    assert (outcome.chosen, outcome.runner_up) == (1, None)
    assert outcome.reason == "beta=0.5, because no other point was trained"


def test_when_all_points_fail_so_does_the_sweep() -> None:
    with pytest.raises(UserError) as caught:
        choose([FAILED, FAILED], BY_LIKELIHOOD, EVALUATION)
    assert str(caught.value) == "sweep: every point failed, for example beta=9.0: the loss is nan"


def test_the_table_names_every_point_and_fits_a_terminal() -> None:
    points = [FAILED, point(0.1, [1, 1, 0, -1]), point(0.5, [1, 1, 2, -1])]
    values = {"learning_rate": 5e-6}
    points = [p.model_copy(update={"values": {**values, **p.values}}) for p in points]
    outcome = choose(points, BY_LIKELIHOOD, EVALUATION)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_sweep(outcome))
    text = console.export_text()
    assert re.search(r"5e-06 +9\.0 +- +- +- +failed", text)
    assert re.search(r"5e-06 +0\.5 +75\.0 \(30\.1-95\.4\) +\S+ \(\S+\) +1\.0 +chosen", text)
    assert "Failed: learning_rate=5e-06, beta=9.0: the loss is nan" in text
    assert "…" not in text
    assert sweep_rows(outcome)[1][-1][0] == "SFT"


def test_the_picture_shows_every_point_and_is_the_same_each_time() -> None:
    outcome = choose([FAILED, point(0.1, [1, 1, 0, -1]), point(0.5, [1, 1, 2, -1])], BY_LIKELIHOOD, EVALUATION)
    svg = sweep_picture(outcome)
    assert svg == sweep_picture(outcome)
    for text in (
        "beta=9.0",
        "failed",
        "beta=0.1",
        "beta=0.5 (chosen)",
        "SFT",
        "preference accuracy on 4 validation pairs",
    ):
        assert text in svg


def test_what_is_stored_comes_back_and_is_shown() -> None:
    outcome = choose([FAILED, point(0.5, [1, 1, 2, -1])], BY_LIKELIHOOD, EVALUATION)
    uri = f"{Client().active_stack.artifact_store.path}/{uuid4()}"
    Client().active_stack.artifact_store.makedirs(uri)
    stored = SweepOutcomeMaterializer(uri)
    stored.save(outcome)
    assert stored.load(type(outcome)) == outcome
    (page,) = stored.save_visualizations(outcome)
    assert "<svg" in Path(page).read_text(encoding="utf-8")
    assert stored.extract_metadata(outcome) == {"chosen": "beta=0.5", "chosen_by": "likelihood_accuracy", "n_points": 2}
    of_points = SweepPointMaterializer(uri)
    assert of_points.extract_metadata(FAILED) == {"point": "beta=9.0", "failure": "the loss is nan"}
    assert of_points.extract_metadata(point(0.5, [1, 1, 2, -1]))["sweep/accuracy"] == 0.75


# A point


def test_a_point_is_trained_and_scored_or_says_why_not(
    tiny_base: Any, preferences: Preferences, tmp_path: Path
) -> None:
    base, section = tiny_base
    sft = sft_on(preferences, SftSection(max_steps=1, max_length=96), TrainingJob(base, section, 0, tmp_path / "sft"))
    reference = reference_on(preferences, sft, base, section, Lengths(max_length=96, max_prompt_length=64))
    dpo = DpoSection(learning_rate=1e-3, max_steps=2, max_length=96, max_prompt_length=64, logging_steps=1)

    def train(name: str, **values: Any) -> tuple[Any, SweepPoint]:
        changed = dpo.model_copy(update=values)
        job = TrainingJob(base, section, 0, tmp_path / name)
        return train_point(GridPoint(values, changed), reference, sft, 8192, job)

    checkpoint, trained = train("good", beta=0.1)
    assert checkpoint.manifest.parent == sft.digest
    assert trained.failure is None
    assert trained.scores is not None
    assert len(trained.scores.margins_nats) == len(preferences.validation)
    stored = reference.of(reference.rows("validation"), reference.lengths)
    expected = stored.chosen_logps.astype(float) - stored.rejected_logps
    np.testing.assert_allclose(trained.scores.reference_margins_nats, expected)
    assert 0 < trained.scores.drift_nats < 5

    checkpoint, failed = train("bad", weight_decay=1e30)
    assert checkpoint is None
    assert failed.scores is None
    assert failed.values == {"weight_decay": 1e30}
    assert failed.failure is not None
    assert "not finite" in failed.failure or "is nan" in failed.failure


# The pipeline


def written(folder: Path, config: Any, **zenml: Any) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"parameters": {"config": config}, **zenml}), encoding="utf-8")
    return str(path)


def test_each_pipeline_refuses_the_others_config(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="sweep: dpo_pipeline trains a single point: run sweep_pipeline"):
        dpo_pipeline.with_options(config_path=written(tmp_path, {"sweep": {"grid": {"beta": [0.1]}}}))()
    with pytest.raises(click.ClickException, match="sweep: missing, so there is nothing to compare"):
        sweep_pipeline.with_options(config_path=written(tmp_path, {}))()


def test_zenmls_settings_of_train_point_are_those_of_every_point(tmp_path: Path) -> None:
    retry = {"retry": {"max_retries": 2}}
    path = written(tmp_path, {"sweep": {"grid": {"beta": [0.1, 0.2, 0.5]}}}, steps={"train_point": retry})
    assert read_run_file(path, ROOT).steps_of_points == {"train_point_2": retry, "train_point_3": retry}
    assert read_run_file(written(tmp_path, {"sweep": {"grid": {"beta": [0.1, 0.2]}}}), ROOT).steps_of_points == {}


def test_settings_of_a_step_that_a_sweep_lacks_are_an_error(tmp_path: Path) -> None:
    """Else ZenML would drop them, and the points would train without their GPU."""
    path = written(tmp_path, {"sweep": {"grid": {"beta": [0.1]}}}, steps={"train_dpo": {}})
    with pytest.raises(
        UserError,
        match=r"steps\.train_dpo: unknown step \(known: benchmark_champion, benchmark_model, choose_point, collect, ",
    ):
        read_run_file(path, ROOT)


@pytest.mark.slow
def test_a_whole_sweep(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A point that diverges costs no other; nothing is trained twice; SFT and reference are shared with dpo_pipeline."""
    pairs = [
        {"prompt": f"Thing {i} is broken.", "chosen": f"Restart it {i} times.", "rejected": "No."} for i in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    config: dict[str, Any] = {
        "name": "swept",
        "model": {"base": str(tiny_folder)},
        "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}], "test_size": 0.2, "validation_size": 0.2},
        "sft": {"max_steps": 1, "max_length": 64},
        "dpo": {"max_steps": 2, "max_length": 64, "max_prompt_length": 48, "learning_rate": 1e-3},
        "tracking": {"experiment": "swept"},
    }

    def run(grid: dict[str, Any]) -> tuple[PipelineRunResponse, set[str]]:
        path = written(tmp_path, {**config, "sweep": {"grid": grid}}, steps={"train_point": {"extra": {"gpus": 1}}})
        done = sweep_pipeline.with_options(config_path=path)()
        assert done is not None
        assert done.status == ExecutionStatus.COMPLETED
        return done, {name for name, step in done.steps.items() if step.status == ExecutionStatus.COMPLETED}

    always = {"load_preferences", "resolve_base", "find_champion", "conclude"}
    judged = {"choose_point", "generate", "evaluate", "promote", "report"}
    first, worked = run({"weight_decay": [0.0, 1e30]})
    assert worked - {"preflight"} == always | judged | {  # another test of this process may have tried the same base
        "tokenise", "train_sft", "score_reference", "train_point", "train_point_2"
    }  # fmt: skip
    assert [first.steps[name].config.extra["gpus"] for name in ("train_point", "train_point_2")] == [1, 1]
    report = read_report(first.id)
    assert report.sweep is not None
    assert [bool(p.failure) for p in report.sweep.points] == [False, True]
    assert "Failed: weight_decay=1e+30: dpo:" in re.sub(r"\s+", " ", capsys.readouterr().out)
    point_digest = first.steps["train_point"].outputs["point_checkpoint"][0].content_hash
    assert first.steps["choose_point"].outputs["dpo_checkpoint"][0].content_hash == point_digest
    assert report.figures.digests["dpo"] == point_digest
    json.dumps(report.as_dict()["sweep"])

    client = MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("swept").experiment_id])
    by_name = {r.info.run_name: r for r in runs}
    parent, good, bad = (by_name[name] for name in (first.name, "weight_decay=0.0", "weight_decay=1e+30"))
    assert (parent.info.status, good.info.status, bad.info.status) == ("FINISHED", "FINISHED", "FAILED")
    assert good.data.tags["mlflow.parentRunId"] == bad.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (good.data.params["dpo.weight_decay"], bad.data.params["dpo.weight_decay"]) == ("0.0", "1e+30")
    chosen = report.sweep.points[0]
    assert chosen.likelihood_accuracy is not None
    assert good.data.metrics["sweep/accuracy"] == pytest.approx(chosen.likelihood_accuracy.value)
    assert "sweep/accuracy" not in bad.data.metrics
    assert parent.data.tags["sweep.chosen"] == "weight_decay=0.0"
    assert {"sweep.svg", "sweep.json"} <= {a.path for a in client.list_artifacts(parent.info.run_id)}

    _, worked = run({"weight_decay": [0.0, 1e30]})
    assert worked == always

    # The new point comes first: what decides is what a point is, not where it stands.
    last, worked = run({"weight_decay": [1e-3, 0.0, 1e30]})
    assert worked - {"evaluate", "promote"} == always | {"train_point", "choose_point"}
    print_report(read_report(last.id))

    alone = dpo_pipeline.with_options(config_path=written(tmp_path, {**config, "finetuning_type": "both"}))()
    assert alone is not None
    assert {alone.steps[name].status for name in ("train_sft", "score_reference")} == {ExecutionStatus.CACHED}
