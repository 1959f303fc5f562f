"""Settings given on the command line."""

from pathlib import Path

import pytest
import yaml

from posttrain.config import load_config
from posttrain.config.assign import assign
from posttrain.errors import UserError

VALUES = {"dpo": {"beta": 0.1}, "data": {"sources": [{"path": "a.jsonl"}, "b.jsonl"]}, "sweep": None}


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("dpo.beta=0.2", ("dpo", "beta"), 0.2),
        ("dpo.epochs=2", ("dpo", "epochs"), 2),
        ("name=my model", ("name",), "my model"),
        ("model.base=a=b", ("model", "base"), "a=b"),
        ("model.lora.rank=8", ("model", "lora", "rank"), 8),
        ("data.sources.0.limit=100", ("data", "sources", 0, "limit"), 100),
        ("data.sources.1=c.jsonl", ("data", "sources", 1), "c.jsonl"),
        ("data.sources=[c.jsonl, {path: d.jsonl}]", ("data", "sources"), ["c.jsonl", {"path": "d.jsonl"}]),
        ("sweep.grid={beta: [0.1, 0.5]}", ("sweep", "grid"), {"beta": [0.1, 0.5]}),
        ("dpo.loss_type=", ("dpo", "loss_type"), None),
    ],
)
def test_a_value_is_replaced_or_added(assignment, path, value):
    found = assign(VALUES, [assignment])
    for part in path:
        found = found[part]
    assert found == value
    assert type(found) is type(value)


def test_the_values_given_are_not_changed():
    before = yaml.safe_dump(VALUES)
    changed = assign(VALUES, ["dpo.beta=0.2", "data.sources.0.limit=1"])
    assert yaml.safe_dump(VALUES) == before
    assert changed["data"]["sources"][1] == "b.jsonl"


def test_the_last_assignment_of_a_key_counts():
    assert assign(VALUES, ["dpo.beta=0.2", "dpo.beta=0.3"])["dpo"]["beta"] == 0.3


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("dpo.beta", "not of the form KEY=VALUE"),
        ("=1", "not of the form KEY=VALUE"),
        ("dpo..beta=1", "not of the form KEY=VALUE"),
        ("dpo.beta=[1", "is not valid YAML"),
        ("data.sources.2.limit=1", "'2' is not an index of a list of 2"),
        ("data.sources.first.limit=1", "'first' is not an index of a list of 2"),
        ("data.sources.1.limit=1", "data.sources.1 is 'b.jsonl' and has no settings of its own"),
        ("data.contamination.0.path=x", "the file has no list here"),
    ],
)
def test_an_assignment_that_does_not_fit_is_refused(assignment, message):
    with pytest.raises(UserError, match=message):
        assign(VALUES, [assignment])


def test_a_file_whose_config_is_no_mapping_is_refused_as_without_assignments(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("parameters: {config: text}")
    with pytest.raises(UserError, match=r"config: 'text' is not allowed"):
        load_config(path, ["dpo.beta=0.2"])


def test_assignments_are_checked_like_the_file(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("parameters: {config: {dpo: {beta: 0.1}}}")
    assert load_config(path, ["dpo.beta=0.2"]).dpo.beta == 0.2
    with pytest.raises(UserError, match=r"run.yaml with --set: dpo.betta: unknown key \(did you mean 'beta'\?\)"):
        load_config(path, ["dpo.betta=0.2"])
    with pytest.raises(UserError, match=r"dpo.beta: -1 is not allowed: must be greater than 0"):
        load_config(path, ["dpo.beta=-1"])


def test_a_file_with_the_values_and_assignments_give_the_same_config(tmp_path: Path):
    """A step's cache key holds the config, so a run with --set takes from the cache what such a file has computed."""
    (tmp_path / "a.yaml").write_text("parameters: {config: {dpo: {beta: 0.1}}}")
    (tmp_path / "b.yaml").write_text("parameters: {config: {dpo: {beta: 0.2, learning_rate: 1e-6}}}")
    assigned = load_config(tmp_path / "a.yaml", ["dpo.beta=0.2", "dpo.learning_rate=1e-6"])
    assert assigned == load_config(tmp_path / "b.yaml")
