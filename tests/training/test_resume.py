"""An interrupted training ends with the same weights and metric history as an uninterrupted one."""

import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support import interrupted
from support.forks import FORKS
from support.interrupted import Training, attempt
from support.stages import reference_on, sft_on

from posttrain.config import DpoSection, Lengths, SftSection
from posttrain.models.checkpoint import Checkpoint
from posttrain.training.resume.training_checkpoints import MANIFEST, TrainingCheckpoints, training_key
from posttrain.training.trainer import TrainingJob

LENGTHS = {"max_length": 96, "max_prompt_length": 64}
# Logs span steps, and validation falls between checkpoints and at logs.
COMMON = {"learning_rate": 1e-3, "max_steps": 14, "batch_size": 2, "gradient_accumulation_steps": 2}
COMMON |= {"logging_steps": 3, "eval_steps": 4, "warmup_steps": 3}
SFT = SftSection(max_length=96, **COMMON, early_stopping_patience=9)
DPO = DpoSection(**LENGTHS, **COMMON, early_stopping_patience=9)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fork_server")]


@pytest.fixture(scope="module")
def trainings(tiny_base, preferences, tmp_path_factory):
    """Return SFT of an adapter with dropout, and DPO of all weights, with the results of uninterrupted processes."""
    base, section = tiny_base
    lora = section.model_copy(update={"method": "lora", "lora": section.lora.model_copy(update={"dropout": 0.1})})
    folder = tmp_path_factory.mktemp("undisturbed")
    sft = sft_on(preferences, SftSection(max_steps=2, max_length=96), TrainingJob(base, section, 0, folder / "start"))
    reference = reference_on(preferences, sft, base, section, Lengths(**LENGTHS))
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    found = {
        "sft": Training("sft", SFT, base, lora, preferences, folder / "sft", tracking_uri=uri),
        "dpo": Training("dpo", DPO, base, section, preferences, folder / "dpo", reference, sft, tracking_uri=uri),
    }
    expected = {name: run_to_its_end(training) for name, training in found.items()}
    return found, expected


def start(training: Training, trap: str = "") -> tuple[multiprocessing.process.BaseProcess, Path]:
    training.folder.mkdir(parents=True, exist_ok=True)
    dest = Path(tempfile.mkdtemp(dir=training.folder)) / "checkpoint"
    process = FORKS.Process(target=logged, args=(training, dest, trap))
    process.start()
    return process, dest


def logged(training: Training, dest: Path, trap: str) -> None:
    """Start an attempt whose output goes into a file."""
    file = os.open(f"{dest}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    logging.basicConfig(force=True, level=logging.WARNING, format="%(message)s")
    attempt(training, dest, trap)


def run_to_its_end(training: Training, trap: str = "") -> Checkpoint:
    process, dest = start(training, trap)
    process.join()
    assert process.exitcode == 0, said(dest)
    return Checkpoint.load(dest)


def cut_off(training: Training, trap: str, number: int = signal.SIGKILL) -> Path:
    process, dest = start(training, trap)
    process.join()
    assert process.exitcode == -number, said(dest)
    return dest


def said(dest: Path) -> str:
    return Path(f"{dest}.log").read_text(encoding="utf-8")


def steps_stored(training: Training) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (training.folder / "store" / "training").iterdir())


def elsewhere(training: Training, folder: Path) -> Training:
    """Return the same training with its own store and MLflow run."""
    return replace(training, name=f"{training.name}-{folder.name}", folder=folder)


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {key: value for key, value in entry.items() if not key.endswith(("runtime", "_per_second"))}
        for entry in history
    ]


def in_mlflow(training: Training) -> dict[str, list[tuple[int, float]]]:
    """Return all metric histories of the training's only nested run."""
    client = MlflowClient(training.tracking_uri)
    experiment = client.get_experiment_by_name("resume")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`posttrain.stage` = '{training.name}'")
    return {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
        if not key.endswith(("runtime_s", "_per_second"))
    }


def assert_equal_to_undisturbed(
    training: Training, expected: Checkpoint, found: Checkpoint, undisturbed: Training
) -> None:
    assert found.digest == expected.digest
    assert without_times(found.history) == without_times(expected.history)
    assert in_mlflow(training) == in_mlflow(undisturbed)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_training_killed_at_random_moments_ends_with_the_same_weights(trainings, name, tmp_path):
    """kill -9 after a random time, twenty times; then the training runs to its end."""
    undisturbed, expected = trainings[0][name], trainings[1][name]
    training, clock = elsewhere(undisturbed, tmp_path / "killed"), random.Random(0)
    n_killed = 0
    while n_killed < 20:
        process, dest = start(training)
        process.join(clock.uniform(0.4, 2.4))
        if process.exitcode == 0:  # it ended before the kill: start again from its last checkpoint
            assert Checkpoint.load(dest).digest == expected.digest
            training.checkpoints.delete()
            continue
        process.kill()
        process.join()
        n_killed += 1
    assert_equal_to_undisturbed(training, expected, run_to_its_end(training), undisturbed)


@pytest.mark.parametrize("name", ["sft", "dpo"])
@pytest.mark.parametrize("trap", ["in_a_step", "in_validation", "in_writing_a_checkpoint", "in_uploading_a_checkpoint"])
def test_training_killed_at_a_bad_moment_ends_with_the_same_weights(trainings, name, trap, tmp_path):
    undisturbed, expected = trainings[0][name], trainings[1][name]
    training = elsewhere(undisturbed, tmp_path / trap)
    cut_off(training, trap)
    found = run_to_its_end(training)
    assert f"{name.upper()} goes on from step" in said(found.path)
    assert_equal_to_undisturbed(training, expected, found, undisturbed)


@pytest.mark.parametrize("name", ["sft", "dpo"])
@pytest.mark.parametrize(("trap", "step"), [("preempted_in_a_step", 6), ("preempted_in_validation", 8)])
def test_sigterm_writes_a_checkpoint_first(trainings, name, trap, step, tmp_path):
    """On SIGTERM the current step is finished, a validation is not. No earlier work is lost."""
    undisturbed, expected = trainings[0][name], trainings[1][name]
    training = elsewhere(undisturbed, tmp_path / trap)
    cut_off(training, trap, signal.SIGTERM)
    assert steps_stored(training)[-1] == step
    found = run_to_its_end(training)
    assert f"goes on from step {step}" in said(found.path)
    assert_equal_to_undisturbed(training, expected, found, undisturbed)


def test_two_checkpoints_are_kept_and_deleted_at_the_end(cut_off_at_8, tmp_path):
    shutil.copytree(cut_off_at_8.folder / "store", tmp_path / "kept" / "store")
    training = elsewhere(cut_off_at_8, tmp_path / "kept")
    assert len(list((training.folder / "store" / "training").glob(f"*/{MANIFEST}"))) == 2
    training.checkpoints.delete()
    assert not (training.folder / "store" / "training").exists()
    training.checkpoints.delete()  # deleting nothing is no error


@pytest.fixture(scope="module")
def cut_off_at_8(trainings, tmp_path_factory):
    """Return an SFT that left two training checkpoints."""
    training = elsewhere(trainings[0]["sft"], tmp_path_factory.mktemp("at-8"))
    cut_off(training, "in_validation")
    return training


def flipped(content: bytes) -> bytes:
    """Return the content with one bit flipped."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = [
    (lambda file: file.write_bytes(file.read_bytes()[:-7]), "optimizer.pt does not match its digest"),
    (lambda file: file.write_bytes(flipped(file.read_bytes())), "optimizer.pt does not match its digest"),
    (lambda file: file.unlink(), "optimizer.pt is missing"),
    (lambda file: (file.parent / MANIFEST).write_text('{"step": 8'), "validation error"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(cut_off_at_8, damage, says, tmp_path, caplog):
    shutil.copytree(cut_off_at_8.folder / "store", tmp_path / "damaged" / "store")
    training = elsewhere(cut_off_at_8, tmp_path / "damaged")
    older, newer = sorted((training.folder / "store" / "training").iterdir())[-2:]
    damage(newer / "optimizer.pt")
    found = training.checkpoints.fetch_newest(tmp_path / "fetched")
    assert found is not None
    assert found.name == older.name
    assert f"{newer.name} is damaged" in caplog.text
    assert says in caplog.text


def test_training_resumes_from_the_checkpoint_before_a_damaged_one(trainings, cut_off_at_8, tmp_path):
    shutil.copytree(cut_off_at_8.folder / "store", tmp_path / "damaged" / "store")
    training = replace(elsewhere(cut_off_at_8, tmp_path / "damaged"), tracking_uri="")
    newest = max((training.folder / "store" / "training").iterdir())
    (newest / "adapter_model.safetensors").write_bytes(b"damaged")
    final = run_to_its_end(training)
    assert final.digest == trainings[1]["sft"].digest
    assert "is damaged" in said(final.path)


def test_files_outside_of_the_folder_are_not_downloaded(trainings, tmp_path, caplog):
    checkpoints = TrainingCheckpoints(interrupted.local_files, str(tmp_path / "store"))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "weights").write_text("w")
    name = checkpoints.store(tmp_path / "work", 1)
    manifest = tmp_path / "store" / name / MANIFEST
    (tmp_path / "store" / "secret").write_text("s")
    about = json.loads(manifest.read_text())
    about["files"]["../secret"] = about["files"].pop("weights")
    manifest.write_text(json.dumps(about))
    assert checkpoints.fetch_newest(tmp_path / "fetched") is None
    assert "../secret is outside of the checkpoint" in caplog.text
    assert not (tmp_path / "fetched" / "secret").exists()


def test_a_checkpoint_with_an_interrupted_upload_is_ignored(tmp_path):
    checkpoints = TrainingCheckpoints(interrupted.local_files, str(tmp_path / "store"))
    assert checkpoints.fetch_newest(tmp_path / "fetched") is None
    work = tmp_path / "work"
    work.mkdir()
    for step in (1, 2, 3):
        (work / "weights").write_text(f"{step}")
        checkpoints.store(work, step)
    newest = max((tmp_path / "store").iterdir())
    (newest / MANIFEST).unlink()
    found = checkpoints.fetch_newest(tmp_path / "fetched")
    assert found is not None
    assert (found / "weights").read_text() == "2"
    checkpoints.store(
        work, 4
    )  # what is older than the last two whole ones goes, the cut-off one between them too, later
    checkpoints.store(work, 5)
    assert sorted(path.name[:13] for path in (tmp_path / "store").iterdir()) == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize(
    ("trap", "says"),
    [
        ("with_a_store_that_refuses", "was not stored in .*Access Denied"),
        ("with_a_store_that_fails_half_an_upload", "was not stored in .*Connection reset"),
        ("with_a_full_disk", "was not written to .*Training continues"),
    ],
)
def test_a_failing_store_does_not_stop_the_training(trainings, trap, says, tmp_path):
    undisturbed, expected = trainings[0]["sft"], trainings[1]["sft"]
    training = replace(elsewhere(undisturbed, tmp_path / trap), tracking_uri="")
    found = run_to_its_end(training, trap)
    assert found.digest == expected.digest
    assert re.search(says, said(found.path).replace("\n", " "))
    assert training.checkpoints.fetch_newest(tmp_path / "fetched") is None


def test_a_full_disk_does_not_stop_a_training_with_early_stopping(trainings, tmp_path):
    undisturbed, expected = trainings[0]["dpo"], trainings[1]["dpo"]
    training = replace(elsewhere(undisturbed, tmp_path / "best"), tracking_uri="")
    found = run_to_its_end(training, "with_no_room_for_the_best")
    assert found.digest == expected.digest
    assert "No space left on device" in said(found.path)
    assert max(steps_stored(training)) < 5  # no checkpoint after the first validation


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_out_of_memory_reduces_the_micro_batch(trainings, name, tmp_path):
    """Four rows do not fit, two do. The weights equal those of a training with two rows from the start."""
    undisturbed, expected = trainings[0][name], trainings[1][name]
    wide = undisturbed.section.model_copy(update={"batch_size": 4, "gradient_accumulation_steps": 1})
    training = replace(elsewhere(undisturbed, tmp_path / "memory"), section=wide, tracking_uri="")
    found = run_to_its_end(training, "with_little_memory")
    assert "micro-batches of 2 rows instead of 4. A step has 2 of them, 4 rows as before" in said(found.path)
    assert found.digest == expected.digest


def test_out_of_memory_with_one_row_is_an_error(trainings, tmp_path):
    training = replace(elsewhere(trainings[0]["sft"], tmp_path / "none"), tracking_uri="")
    process, dest = start(training, "with_no_memory")
    process.join()
    assert process.exitcode == 1
    assert "UserError: out of memory in the first step with batch_size 1" in said(dest)
    training = replace(elsewhere(trainings[0]["sft"], tmp_path / "later"), tracking_uri="")
    process, dest = start(training, "with_memory_that_runs_out")
    process.join()
    assert (
        "UserError: sft: out of memory after step 3, on a batch with longer rows than before: lower sft.batch_size"
        in said(dest)
    )


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "sharding"), [("sft", "none"), ("sft", "fsdp"), ("dpo", "fsdp"), ("sft", "zero2"), ("dpo", "zero3")]
)
def test_two_processes_resume_from_one_checkpoint(trainings, name, sharding, tmp_path):
    """SIGTERM to their parent reaches both processes. Both write the same step, and the result equals an uninterrupted training."""
    two = trainings[0][name].section.model_copy(update={"processes": 2, "sharding": sharding})
    whole = replace(elsewhere(trainings[0][name], tmp_path / "whole"), section=two, tracking_uri="")
    training = replace(elsewhere(whole, tmp_path / "interrupted"), section=two)
    process, dest = start(training)
    store = training.folder / "store" / "training"
    while not (store.exists() and any(store.glob(f"*/{MANIFEST}"))):
        assert process.is_alive(), said(dest)
        time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == -signal.SIGTERM, said(dest)
    found = run_to_its_end(training)
    assert f"{name.upper()} goes on from step" in said(found.path)
    assert found.digest == run_to_its_end(whole).digest


@pytest.mark.soak
@pytest.mark.parametrize("sharding", ["none", "fsdp", "zero3"])
def test_a_full_disk_does_not_stop_two_processes(trainings, sharding, tmp_path):
    """Only the first process has a full disk. The other one does not wait for it or leave a partial checkpoint."""
    two = trainings[0]["sft"].section.model_copy(update={"processes": 2, "sharding": sharding})
    whole = replace(elsewhere(trainings[0]["sft"], tmp_path / "whole"), section=two, tracking_uri="")
    training = replace(elsewhere(whole, tmp_path / "full"), section=two)
    found = run_to_its_end(training, "with_a_full_disk")
    assert "was not written to" in said(found.path)
    assert training.checkpoints.fetch_newest(tmp_path / "fetched") is None
    assert found.digest == run_to_its_end(whole).digest


def test_the_key_depends_on_every_value():
    assert training_key("a", 1, {"b": 2, "c": 3}) == training_key("a", 1, {"c": 3, "b": 2})
    assert len({training_key("a"), training_key("b"), training_key("a", "b"), training_key(["a", "b"])}) == 4
    with pytest.raises(TypeError):
        training_key(object())
