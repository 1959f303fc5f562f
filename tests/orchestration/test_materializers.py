"""What is stored comes back the same, what was tampered with does not, and nothing stored can run in a browser."""

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from zenml import pipeline, step
from zenml.client import Client
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.materializers.materializer_registry import materializer_registry

from materializers import (
    CheckpointMaterializer,
    EvaluationMaterializer,
    InstructionsMaterializer,
    PreferencesMaterializer,
    RecordMaterializer,
    ReferenceLogpsMaterializer,
    ReportMaterializer,
    TokensMaterializer,
)
from posttrain.chat.tokens import PairTokens, SftTokens
from posttrain.config import DataSection, EvaluationSection, Lengths, Source
from posttrain.data.loader import load_preferences
from posttrain.data.stored import EXAMPLE_SCHEMA, Instructions, Preferences
from posttrain.errors import UserError
from posttrain.evaluation.figures import Figures
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.scoring import Evaluation
from posttrain.evaluation.statistics import summarise
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.orchestration.running_step.folder_materializer import upload
from posttrain.orchestration.running_step.stored_files import DamagedArtifact
from posttrain.reporting.html import Table, tables_page
from posttrain.training.reference import ReferenceLogps

BASE = Base(id="some/base", revision=None, digest="b" * 64)


def stored(materializer: type[BaseMaterializer], data: Any) -> Any:
    """A materializer that has stored the data in the artifact store of the active stack."""
    uri = f"{Client().active_stack.artifact_store.path}/{uuid4()}"
    Client().active_stack.artifact_store.makedirs(uri)
    instance = materializer(uri)
    instance.save(data)
    return instance


def preferences() -> Preferences:
    return load_preferences(DataSection(sources=[Source(path="demo", limit=100)], test_size=0.2))[0]


def checkpoint(folder: Path) -> Checkpoint:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    about = {"stage": "sft", "kind": "full", "base": BASE, "parent": None, "template": "", "stop_ids": [0]}
    return seal(folder, [{"loss": 1.0}], **about, metrics={"n_steps": 1.0})


def evaluation() -> Evaluation:
    pairs = pa.table(
        {
            "id": ["a", "b"],
            "source": ["s", "s"],
            "true_margin": pa.array([1.0, None]),
            **{name: ["text", "text"] for name in ("prompt", "chosen", "rejected")},
            "n_turns": [1, 2],
            "n_prompt_tokens": [5, 6],
            "n_chosen_tokens": [2, 2],
            "n_rejected_tokens": [2, 2],
            **{f"{stage}_chosen_logps": pa.array([-1.0, -2.0]) for stage in ("base", "sft")},
            **{f"{stage}_rejected_logps": pa.array([-2.0, -1.0]) for stage in ("base", "sft")},
        }
    )
    found = summarise(pairs, EvaluationSection(n_bootstrap=100), {})
    about = {"confidence": 0.95, "seed": 0, "digests": {"base": BASE.digest}}
    return Evaluation(Figures(**dict(found), sets={"some/set": found}, **about), pairs, {"some/set": pairs})


@pytest.fixture(params=["local store", "remote store"])
def any_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once read in place, once as if the store were elsewhere."""
    if request.param == "remote store":
        monkeypatch.setattr(
            "posttrain.orchestration.running_step.folder_materializer.LocalArtifactStore", type("Elsewhere", (), {})
        )


@pytest.mark.usefixtures("any_store")
def test_preferences_survive_a_round_trip() -> None:
    pairs = preferences()
    back = stored(PreferencesMaterializer, pairs).load(Preferences)
    assert back.digest == pairs.digest
    assert back.test.to_list() == pairs.test.to_list()


@pytest.mark.usefixtures("any_store")
def test_instructions_survive_a_round_trip() -> None:
    turn = [{"role": "user", "content": "Hello"}]
    row = {"id": "1", "source": "s", "prompt": turn, "completion": turn, "tools": None}
    instructions = Instructions(Dataset(pa.Table.from_pylist([row], schema=EXAMPLE_SCHEMA)))
    assert (
        stored(InstructionsMaterializer, instructions).load(Instructions).rows.to_list() == instructions.rows.to_list()
    )


@pytest.mark.usefixtures("any_store")
def test_a_checkpoint_survives_a_round_trip(tmp_path: Path) -> None:
    original = checkpoint(tmp_path / "sft")
    back = stored(CheckpointMaterializer, original).load(Checkpoint)
    assert back.manifest == original.manifest
    assert back.history == [{"loss": 1.0}]


@pytest.mark.usefixtures("any_store")
@pytest.mark.parametrize(
    "tamper",
    [
        lambda files: (files / "model.safetensors").write_bytes(b"WEIGHTS"),
        lambda files: (files / "model.safetensors").unlink(),
        lambda files: (files / "pytorch_model.bin").write_bytes(b"a pickle"),
    ],
    ids=["changed", "missing", "added"],
)
def test_a_checkpoint_that_was_tampered_with_is_refused(tmp_path: Path, tamper: Callable[[Path], Any]) -> None:
    materializer = stored(CheckpointMaterializer, checkpoint(tmp_path / "sft"))
    tamper(Path(materializer.files_uri))
    with pytest.raises(UserError, match=r"model\.safetensors|pytorch_model\.bin"):
        materializer.load(Checkpoint)


@pytest.mark.usefixtures("any_store")
def test_reference_logps_survive_a_round_trip() -> None:
    table = pa.table({"id": ["a"], "ref_chosen_logps": np.array([-1.5], dtype=np.float32)})
    lengths = Lengths(max_length=9, max_prompt_length=4)
    reference = ReferenceLogps(
        table, key="k" * 64, policy="p" * 64, checkpoint="c" * 64, lengths=lengths, cut={"train": {"cut": 1}}
    )
    assert stored(ReferenceLogpsMaterializer, reference).load(ReferenceLogps) == reference


@pytest.mark.usefixtures("any_store")
def test_tokens_come_back() -> None:
    lists = {name: pa.array([[1, 2]], pa.list_(pa.int32())) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    pairs = pa.table({"id": ["a"], **lists})
    cut = {split: {"prompt_cut": 1} for split in ("train", "validation", "test")}
    lengths = Lengths(max_length=9, max_prompt_length=4)
    tokens = PairTokens({"train": pairs, "validation": pairs.slice(0, 0), "test": pairs}, cut, lengths, "c" * 64)
    materializer = stored(TokensMaterializer, tokens)
    assert materializer.load(PairTokens) == tokens
    assert materializer.compute_content_hash(tokens) == tokens.digest
    assert materializer.extract_metadata(tokens) == {
        "digest": tokens.digest, "n_train": 1, "n_validation": 0, "n_test": 1, "cut": cut
    }  # fmt: skip
    rows = pa.table({"input_ids": lists["prompt_ids"], "labels": lists["chosen_ids"]})
    sft = SftTokens({"train": rows, "validation": rows}, cut, 9, "c" * 64)
    assert stored(TokensMaterializer, sft).load(SftTokens) == sft


@pytest.mark.usefixtures("any_store")
def test_an_evaluation_comes_back() -> None:
    original = evaluation()
    back = stored(EvaluationMaterializer, original).load(Evaluation)
    assert back.figures == original.figures
    assert back.pairs == original.pairs
    assert back.sets == original.sets


@pytest.mark.parametrize("record", [BASE, Promotion(promoted=False, opponent="sft", reasons=["<b>too few</b>"])])
def test_a_record_survives_a_round_trip(record: Any) -> None:
    assert stored(RecordMaterializer, record).load(type(record)) == record


def test_the_content_hash_depends_on_the_content_alone(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    hashes = {stored(CheckpointMaterializer, data).compute_content_hash(data) for data in (first, second)}
    assert hashes == {first.digest}
    hashes = {
        stored(PreferencesMaterializer, data).compute_content_hash(data) for data in (preferences(), preferences())
    }
    assert len(hashes) == 1


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def files_of(materializer: Any) -> list[Path]:
    """The files that an artifact is loaded from. What MLflow reads lies beside them."""
    return sorted(path for path in Path(materializer.uri, "files").rglob("*") if path.is_file())


@pytest.mark.usefixtures("any_store")
@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_no_file_of_any_artifact_can_change_unseen(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    lengths = Lengths(max_length=9, max_prompt_length=4)
    reference = ReferenceLogps(
        pa.table({"id": ["a"]}), key="k" * 64, policy="p" * 64, checkpoint="c" * 64, lengths=lengths, cut={}
    )
    artifacts = [
        (PreferencesMaterializer, preferences()),
        (ReferenceLogpsMaterializer, reference),
        (EvaluationMaterializer, evaluation()),
        (CheckpointMaterializer, checkpoint(tmp_path / "sft")),
        (RecordMaterializer, BASE),
    ]
    for kind, data in artifacts:
        for number, whole in enumerate(files_of(stored(kind, data))):
            materializer = stored(kind, data)
            path = files_of(materializer)[number]
            assert path.name == whole.name
            damage(path)
            with pytest.raises(DamagedArtifact):
                materializer.load(type(data))


def test_a_missing_folder_is_named_and_an_artifact_without_digests_is_loaded() -> None:
    materializer = stored(RecordMaterializer, BASE)
    digests = Path(materializer.uri, "sha256.json")
    for damage in (b"", b"[1]", b'{"record.json": 1}', b"\xff", b'{"record.json": "0"}'):
        digests.write_bytes(damage)
        with pytest.raises(DamagedArtifact):
            materializer.load(Base)
    digests.unlink()
    assert materializer.load(Base) == BASE
    shutil.rmtree(materializer.uri)
    with pytest.raises(DamagedArtifact, match=r"its folder .* is missing or empty"):
        materializer.load(Base)


@step(enable_cache=False)
def load_again() -> Annotated[Preferences, "preferences"]:
    return preferences()


@pipeline
def loads_again() -> None:
    load_again()


@pytest.mark.slow
def test_unchanged_preferences_are_stored_once_and_again_if_the_first_are_damaged() -> None:
    def run() -> tuple[Any, list[str]]:
        artifact = loads_again().steps["load_again"].output
        assert artifact.load().digest == preferences().digest
        return artifact, sorted(path.name for path in Path(artifact.uri).rglob("*") if path.is_file())

    whole = ["preview.html", "sha256.json", "test.parquet", "train.parquet", "validation.parquet"]
    first, files = run()
    assert files == whole
    assert [run()[1] for _ in range(2)] == [["preview.html", "sha256.json"]] * 2
    last, _ = run()
    flip_a_bit(Path(first.uri) / "files" / "train.parquet")
    with pytest.raises(DamagedArtifact, match=r"files/train\.parquet is damaged"):
        last.load()
    assert run()[1] == whole


def test_every_artifact_has_metadata(tmp_path: Path) -> None:
    pairs, sft = preferences(), checkpoint(tmp_path / "sft")
    assert stored(PreferencesMaterializer, pairs).extract_metadata(pairs)["n_test"] == len(pairs.test)
    assert stored(CheckpointMaterializer, sft).extract_metadata(sft)["n_steps"] == 1.0
    figures = stored(EvaluationMaterializer, evaluation()).extract_metadata(evaluation())
    assert figures["acc/sft"] == 0.5
    assert figures["p/sft_vs_base"] == 1.0


def test_a_preview_shows_the_first_rows() -> None:
    pairs = preferences()
    (uri,) = stored(PreferencesMaterializer, pairs).save_visualizations(pairs)
    assert pairs.test[0]["prompt"][0]["content"][:9] in Path(uri).read_text(encoding="utf-8")


def test_text_in_a_preview_cannot_run() -> None:
    page = tables_page("preview", {"": Table(["prompt"], [["<script>alert('x')</script>"]])})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_large_file_is_copied_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(64 * 2**20))
    store = Client().active_stack.artifact_store
    tracemalloc.start()
    upload(tmp_path, f"{store.path}/{uuid4()}", store)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20


def test_no_materializer_takes_every_dict_or_path() -> None:
    """Once claimed, ZenML would store every step's dict with it, for all pipelines of the process."""
    claimed = [
        type_
        for type_, materializer in materializer_registry.materializer_types.items()
        if materializer.__module__.startswith("materializers")
    ]
    assert claimed
    assert [type_ for type_ in claimed if not type_.__module__.startswith("posttrain")] == []


def test_a_data_report_survives_a_round_trip_and_has_a_page() -> None:
    _, report = load_preferences(DataSection(sources=[Source(path="demo", limit=100)], test_size=0.2))
    materializer = stored(ReportMaterializer, report)
    assert materializer.load(type(report)) == report
    ((uri, kind),) = materializer.save_visualizations(report).items()
    assert kind.value == "html"
    assert "pairs in 100 rows read" in Path(uri).read_text(encoding="utf-8")
    metadata = materializer.extract_metadata(report)
    assert metadata["n_read"] == 100
    assert not {"examples", "figures"} & set(metadata)
    assert materializer_registry.materializer_types[type(report)] is ReportMaterializer
