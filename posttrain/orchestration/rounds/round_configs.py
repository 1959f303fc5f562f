"""The configs of the runs of a loop, made from one config."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

from posttrain.data.rows import canonical
from posttrain.errors import UserError

Document = dict[str, Any]


def loop_id(document: Document) -> str:
    """Return what tells the loops of different configs apart. The number of rounds is no part of it, so more can be added."""
    return hashlib.sha256(canonical(document["parameters"]["config"])).hexdigest()[:10]


def tag_of(document: Document, number: int, stage: str) -> str:
    """Return the tag of a run of a loop: `loop-3f9c2a1b07-round-1-collect`."""
    return f"loop-{loop_id(document)}-round-{number}-{stage}"


def first_training(document: Document) -> Document:
    """Return the document of round 0: the config itself, without what only a collection needs."""
    made, config = _copy(document, tag_of(document, 0, "train"))
    if config.pop("collect", None) is None:
        raise UserError("collect: missing, so a loop has nothing to collect: add the section")
    return made


def collection(document: Document, number: int, model: str, artifacts: list[str]) -> Document:
    """Return the document that collects in a round.

    Args:
        number: of the round, from 1. It is added to `collect.seed`, so every round draws other prompts and answers.
        model: the version in production when the round began.
        artifacts: what earlier rounds collected.
    """
    made, config = _copy(document, tag_of(document, number, "collect"))
    seed = config["collect"].get("seed", 0) + number
    config["collect"] = {**config["collect"], "models": [model], "seed": seed}
    _add_sources(config, artifacts)
    return made


def next_training(document: Document, number: int, model: str, artifacts: list[str]) -> Document:
    """Return the document that trains in a round: DPO from the model that answered, on all pairs so far."""
    made, config = _copy(document, tag_of(document, number, "train"))
    for name in ("collect", "sft"):
        config.pop(name, None)
    config["finetuning_type"] = "dpo"
    config["dpo"] = {**config.get("dpo", {}), "start": model}
    _add_sources(config, artifacts)
    return made


def _copy(document: Document, tag: str) -> tuple[Document, Document]:
    made = copy.deepcopy(document)
    made["tags"] = [*made.get("tags", []), tag]
    return made, made["parameters"]["config"]


def _add_sources(config: Document, artifacts: list[str]) -> None:
    data = config.setdefault("data", {})
    data["sources"] = [*data.get("sources", ["demo"]), *({"path": artifact} for artifact in artifacts)]
