"""Files that people or other programs write, damaged in any way, give a result or a `UserError`. `make fuzz` draws many more."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.paths import ROOT

from posttrain.config import load_config
from posttrain.data.sources import readers
from posttrain.errors import UserError
from posttrain.feedback.vote_files import read_ballots
from posttrain.feedback.vote_score import ab_score
from posttrain.models.checkpoint import Base, Checkpoint, seal

pytestmark = pytest.mark.fuzz

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SETTINGS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def changed(whole: Any) -> st.SearchStrategy[Any]:
    """A document of mappings and lists in which one value is another, or missing."""
    paths = list(_paths(whole))

    def change(path: tuple[Any, ...], value: Any, remove: bool) -> Any:
        copy = json.loads(json.dumps(whole))
        place = copy
        for part in path[:-1]:
            place = place[part]
        if remove:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return copy

    return st.builds(change, st.sampled_from(paths), VALUES, st.booleans())


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Any:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*before, key)
        yield from _paths(inner, (*before, key))


def damaged(text: bytes) -> st.SearchStrategy[bytes]:
    """A file with some bytes replaced, or cut off."""
    where = st.integers(0, len(text))
    return st.builds(
        lambda start, end, new: text[:start] + new + text[max(start, end) :], where, where, st.binary(max_size=8)
    )


def read_or_refused(function: Callable[[], Any]) -> None:
    """Call a function, which may raise a `UserError`."""
    with suppress(UserError):
        function()


@SETTINGS
@given(st.data())
def test_any_run_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    demo = (ROOT / "configs" / "demo.yaml").read_bytes()
    document = yaml.safe_load(demo)
    content = data.draw(damaged(demo) | changed(document).map(lambda found: yaml.safe_dump(found).encode()))
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    read_or_refused(lambda: load_config(path))


@SETTINGS
@given(st.data())
def test_any_manifest_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "checkpoint"
    if not folder.exists():
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        base = Base(id="b", revision=None, digest="d")
        about: dict[str, Any] = {"stage": "sft", "kind": "full", "base": base, "parent": None, "template": "plain"}
        seal(folder, [], **about, stop_ids=[2], metrics={"loss": 1.0})
        (tmp_path / "whole.json").write_bytes((folder / "manifest.json").read_bytes())
    whole = (tmp_path / "whole.json").read_bytes()
    content = data.draw(damaged(whole) | changed(json.loads(whole)).map(lambda found: json.dumps(found).encode()))
    (folder / "manifest.json").write_bytes(content)
    read_or_refused(lambda: Checkpoint.load(folder))


@SETTINGS
@given(st.data())
def test_any_file_of_choices_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    generations: Any = SimpleNamespace(exchanges=[])
    whole = {"answers": "0" * 64, "choices": {"a": "left", "b": "tie"}}
    path = tmp_path / "choices.json"
    content = json.dumps(whole).encode()
    path.write_bytes(data.draw(damaged(content) | changed(whole).map(lambda found: json.dumps(found).encode())))
    read_or_refused(lambda: ab_score(generations, read_ballots([path])))


@SETTINGS
@given(st.data(), st.sampled_from(["jsonl", "json", "csv", "jsonl.gz", "jsonl.zst", "parquet"]))
def test_any_data_file_is_read_or_refused(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(data.draw(st.binary(max_size=200) | damaged(b'{"prompt": "a", "chosen": "b"}\n{"prompt": "c"}\n')))
    read_or_refused(lambda: list(readers.read_rows(path, path.name)))
