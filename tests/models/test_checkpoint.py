"""Only complete, unchanged and harmless checkpoints are loaded."""

import hashlib
import json

import pytest

from posttrain.errors import UserError
from posttrain.models.checkpoint import Base, Checkpoint, seal

ABOUT = {
    "stage": "sft", "kind": "full", "base": Base(id="b", revision=None, digest="d"), "parent": None, "template": "plain",
    "stop_ids": [2], "metrics": {"loss": 1.0},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_sealed_checkpoint_can_be_loaded(folder):
    sealed = seal(folder, [{"loss": 2.0}], **ABOUT)
    loaded = Checkpoint.load(folder)
    assert loaded == sealed
    assert loaded.history == [{"loss": 2.0}]


def test_the_digest_does_not_depend_on_the_history(folder):
    first = seal(folder, [{"runtime": 1.0}], **ABOUT).digest
    (folder / "manifest.json").unlink()
    assert seal(folder, [{"runtime": 2.0}], **ABOUT).digest == first
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").write_bytes(b"weightz")
    assert seal(folder, [{"runtime": 1.0}], **ABOUT).digest != first


def test_a_changed_file_is_named(folder):
    seal(folder, [], **ABOUT)
    (folder / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(UserError, match=r"model\.safetensors: was changed or damaged"):
        Checkpoint.load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("template", "other"),
        ("stop_ids", [3]),
        ("kind", "adapter"),
        ("base", {"id": "b", "revision": None, "digest": "e", "template_digest": None}),
        ("base", {"id": "b", "revision": None, "digest": "d", "template_digest": "t"}),
        ("digest", "0" * 64),
    ],
)
def test_a_changed_manifest_is_refused(folder, field, value):
    """Template, stop tokens and base decide what the model answers, as much as its weights."""
    seal(folder, [], **ABOUT)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(UserError, match=r"manifest\.json: was changed or damaged"):
        Checkpoint.load(folder)


def test_models_that_differ_in_template_stop_tokens_or_base_have_different_digests(folder):
    other_base = Base(id="b", revision=None, digest="e")
    changes = [{}, {"template": "other"}, {"stop_ids": [2, 3]}, {"base": other_base}, {"kind": "adapter"}]
    digests = []
    for change in changes:
        (folder / "manifest.json").unlink(missing_ok=True)
        digests.append(seal(folder, [], **ABOUT | change).digest)
    assert len(set(digests)) == len(changes)
    same = {"base": Base(id="elsewhere/b", revision="1", digest="d"), "metrics": {"loss": 2.0}}
    (folder / "manifest.json").unlink()
    assert seal(folder, [], **ABOUT | same).digest == digests[0], "where it was trained does not matter"


def test_a_checkpoint_of_an_earlier_release_is_loaded(folder):
    """Its digest covers the files alone: sha256 of `name digest` lines."""
    seal(folder, [], **ABOUT)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = ("config.json", "model.safetensors")
    lines = "".join(f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in names)
    manifest["digest"] = hashlib.sha256(lines.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert Checkpoint.load(folder).digest == manifest["digest"]


def test_a_missing_and_an_added_file_are_named(folder):
    seal(folder, [], **ABOUT)
    (folder / "extra.json").write_text("{}")
    with pytest.raises(UserError, match=r"extra\.json: is not part"):
        Checkpoint.load(folder)
    (folder / "extra.json").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: is missing"):
        Checkpoint.load(folder)


def test_a_file_that_can_run_code_is_refused(folder):
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: may not be in a checkpoint"):
        seal(folder, [], **ABOUT)


def test_a_manifest_with_a_path_outside_of_its_folder_is_refused(folder):
    seal(folder, [], **ABOUT)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret.json"] = "0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"secret\.json"):
        Checkpoint.load(folder)


@pytest.mark.parametrize("content", [b"\x80", b"[1]", b"", b'{"stage": 1}'])
def test_a_manifest_that_is_none_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint"):
        Checkpoint.load(folder)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a checkpoint"):
        Checkpoint.load(tmp_path)
