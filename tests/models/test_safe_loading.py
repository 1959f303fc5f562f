"""Loading never runs code or leaves a folder: no pickles, no archives, no links, no code that ships with a model."""

import ast
import importlib
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from support.paths import ROOT
from zenml.materializers.cloudpickle_materializer import CloudpickleMaterializer
from zenml.materializers.materializer_registry import materializer_registry

import materializers  # noqa: F401 (registers them)
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.models.base import base_source, resolve_base
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.models.loading import load_chat, load_model
from posttrain.orchestration.project import step_names
from posttrain.orchestration.running_step.folder_materializer import download

OURS = sorted(
    path
    for place in ("posttrain", "steps", "materializers", "pipelines", ".")
    for path in (ROOT / place).glob("*.py" if place == "." else "**/*.py")
)
UNSAFE_MODULES = {
    *("pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"),
    *("zipfile", "tarfile", "pickletools"),
}
BUILT_IN = {"eval", "exec", "compile"}
UNSAFE_CALLS = {"unpack_archive", "extractall", "read_pickle", "unsafe_load", "full_load"}
SAFE_ONLY_WITH: dict[str, dict[str, bool]] = {
    "torch.load": {"weights_only": True},
    "np.load": {"allow_pickle": False},
    "numpy.load": {"allow_pickle": False},
}


def unsafe(source: str) -> list[str]:
    """Return the calls in a module's source that can run loaded code or extract archives."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            needs = SAFE_ONLY_WITH.get(called, {})
            lacks = any(given.get(option) is not value for option, value in needs.items())
            if called in BUILT_IN or called.split(".")[-1] in UNSAFE_CALLS or lacks or given.get("shell"):
                found.append(called)
    return found


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_or_unpacks(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "shutil.unpack_archive(a, b)",
        "import tarfile",
        "subprocess.run(line, shell=True)",
        "eval(text)",
    ],
)
def test_the_search_finds_unsafe_calls(source: str) -> None:
    assert unsafe(source)
    assert not unsafe("torch.load(path, weights_only=True); model.eval(); re.compile(a)")


@pytest.mark.parametrize("name", sorted(step_names(ROOT)))
def test_no_step_s_output_is_pickled(name: str) -> None:
    """ZenML pickles whatever has no materializer."""
    step = getattr(importlib.import_module(f"steps.{name}"), name)
    for output in step.entrypoint_definition.outputs.values():
        for kind in get_args(output.resolved_annotation) or (output.resolved_annotation,):
            assert materializer_registry[kind] is not CloudpickleMaterializer, kind


class Evil:
    """An object that leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def copied(folder: Path, into: Path) -> Path:
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())
    return into


def test_pickled_weights_are_not_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    folder, mark = copied(tiny_folder, tmp_path / "model"), tmp_path / "mark"
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    section = ModelSection(base=str(folder))
    with pytest.raises(OSError, match="safetensors"):
        load_model(resolve_base(section), section)
    assert not mark.exists()
    with pytest.raises(pickle.UnpicklingError):  # what transformers reads a training checkpoint with
        torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert not mark.exists()


def test_a_model_s_own_code_is_not_run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mark = copied(tiny_folder, tmp_path / "model"), tmp_path / "mark"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    ours = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": ours}))
    section = ModelSection(base=str(folder))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # an answer on the terminal must not matter
    base = resolve_base(section)
    load_chat(base, section)  # the tokenizer is one that transformers knows
    with pytest.raises(UserError, match="loading needs code that ships with the model"):
        load_model(base, section)
    assert not mark.exists()


def test_a_model_s_own_code_has_the_pinned_revision() -> None:
    """Also for code in another repository, of which transformers would use the newest revision."""
    commit = "a" * 40
    section = ModelSection(base="some/model", revision=commit, trust_remote_code=True)
    base = Base(id="some/model", revision=commit, digest="d")
    _, options = base_source(base, section)
    assert options == {"revision": commit, "trust_remote_code": True, "code_revision": commit}
    _, options = base_source(base, ModelSection(base="some/model", revision=commit))
    assert options == {"revision": commit, "trust_remote_code": False}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    base = Base(id="b", revision=None, digest="d")
    seal(folder, [], stage="sft", kind="full", base=base, parent=None, template="", stop_ids=[2], metrics={})
    return folder


@pytest.mark.parametrize("name", ["../secret.json", "/etc/secret.json", "a/../../secret.json", "..", "", "sub/x.json"])
def test_a_manifest_stays_in_its_folder(checkpoint: Path, name: str) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = "0" * 64
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError):
        Checkpoint.load(checkpoint)


@pytest.mark.parametrize("kind", ["link", "link to a folder", "folder"])
def test_a_checkpoint_with_a_link_or_folder_is_refused(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    weights, outside = checkpoint / "model.safetensors", tmp_path / "outside"
    if kind == "folder":
        weights.unlink()
        weights.mkdir()
    else:
        weights.rename(outside) if kind == "link" else outside.mkdir()
        weights.unlink(missing_ok=True)
        weights.symlink_to(outside)
    with pytest.raises(UserError, match=r"model\.safetensors: is a link or a folder"):
        Checkpoint.load(checkpoint)


@pytest.mark.parametrize("name", ["../secret.json", "/tmp/secret.json", "..", "a/b.json", "."])
def test_a_store_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    store: Any = SimpleNamespace(listdir=lambda uri: [name], open=lambda *_: pytest.fail("it was opened"))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match="not a plain file name"):
        download("s3://bucket/files", folder, store)
    assert not any(folder.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"folder"}
