"""The runs of a loop, their configs, and what an interrupted loop does again."""

from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.errors import UserError
from posttrain.orchestration.rounds import loop_runs
from posttrain.orchestration.rounds.round_configs import collection, first_training, loop_id, next_training, tag_of


@pytest.fixture
def document() -> dict[str, Any]:
    config = {"name": "shop", "sft": {"epochs": 1}, "dpo": {"beta": 0.2}, "collect": {"seed": 7}}
    return {"tags": ["mine"], "parameters": {"config": config}}


def config_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["parameters"]["config"]


def test_the_first_training_is_the_config_without_the_collection(document):
    made = first_training(document)
    assert config_of(made) == {"name": "shop", "sft": {"epochs": 1}, "dpo": {"beta": 0.2}}
    assert made["tags"] == ["mine", tag_of(document, 0, "train")]
    assert "collect" in config_of(document)
    with pytest.raises(UserError, match="collect: missing"):
        first_training(made)


def test_every_round_draws_other_prompts_and_keeps_the_pairs_of_earlier_ones(document):
    made = config_of(collection(document, 2, "shop:4", ["artifact:collected_preferences:1"]))
    assert made["collect"] == {"seed": 9, "models": ["shop:4"]}
    assert made["data"]["sources"] == ["demo", {"path": "artifact:collected_preferences:1"}]


def test_a_round_trains_dpo_from_the_model_that_answered(document):
    made = config_of(next_training(document, 1, "shop:4", ["artifact:collected_preferences:1"]))
    assert made["dpo"] == {"beta": 0.2, "start": "shop:4"}
    assert made["finetuning_type"] == "dpo"
    assert "sft" not in made
    assert "collect" not in made


def test_other_configs_are_other_loops(document):
    other = {**document, "parameters": {"config": {**config_of(document), "seed": 1}}}
    assert loop_id(document) == loop_id({**document, "tags": []})
    assert loop_id(document) != loop_id(other)


class Store:
    """Runs by tag, instead of ZenML: a run finishes at once, unless it is the one that fails."""

    def __init__(self) -> None:
        self.finished: dict[str, Any] = {}
        self.begun: list[str] = []
        self.models: list[str] = []
        self.failing = ""

    def run(self, pipeline: str, document: dict[str, Any], tag: str, stack: str | None) -> Any:
        if tag in self.finished:
            return self.finished[tag]
        self.begun.append(tag.split("-", 2)[2])
        if tag.endswith(self.failing or "-"):
            raise UserError("loop: run failed")
        self.models += config_of(document).get("collect", {}).get("models", [])
        self.finished[tag] = SimpleNamespace(name=tag, steps={"collect": SimpleNamespace(version=str(len(self.begun)))})
        return self.finished[tag]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    monkeypatch.setattr(loop_runs, "_run", found.run)
    monkeypatch.setattr(loop_runs, "_model_of_round", lambda name, tag: f"{name}:{len(found.begun)}")
    monkeypatch.setattr(loop_runs, "output", lambda step: step)
    return found


def test_a_loop_that_failed_goes_on_with_the_run_that_failed(document, store):
    store.failing = "round-1-train"
    with pytest.raises(UserError, match="run failed"):
        loop_runs.run_loop(document, 2)
    store.failing, store.begun = "", []
    rounds = loop_runs.run_loop(document, 2)
    assert store.begun == ["round-1-train", "round-2-collect", "round-2-train"]
    assert [trained.name for _, trained in rounds] == [tag_of(document, i, "train") for i in range(3)]


def test_a_longer_loop_repeats_no_round(document, store):
    loop_runs.run_loop(document, 1)
    store.begun = []
    loop_runs.run_loop(document, 2)
    assert store.begun == ["round-2-collect", "round-2-train"]
    loop_runs.run_loop(document, 2)
    assert store.begun == ["round-2-collect", "round-2-train"]
