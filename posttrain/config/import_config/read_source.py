"""A config of another tool: reading the file, and which tool it is of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.config.equivalents.entry import Tool
from posttrain.config.equivalents.fates import Reading
from posttrain.config.equivalents.tools import TOOLS
from posttrain.config.equivalents.trl_names import OTHER_TRAINERS
from posttrain.config.load import read_yaml
from posttrain.errors import UserError

_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def read_source(source: str | Path | Mapping[str, Any], tool: str, where: str) -> Reading:
    """The settings of a file, and the tool that they belong to.

    Args:
        source: a YAML file, or what is in one.
        tool: a key of `TOOLS`, or `auto`.
        where: what messages call the file.

    Raises:
        UserError: not a DPO config of a tool, or not clear of which.
    """
    document = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    found = _tool(document, tool, where)
    _refuse_other_trainings(found, document, where)
    for keys, meaning in (((found.model_key,), "model"), (found.data_keys, "training data")):
        if not any(document.get(key) for key in keys):
            raise UserError(f"{where}: names no {meaning}: add {' or '.join(keys)}, as {found.name} calls it")
    document = {str(key): _number(value) for key, value in document.items()}
    return Reading(found, document, _dataset_info(source, document) if found.key == "llama-factory" else {})


def _read(path: Path) -> dict[str, Any]:
    document = read_yaml(path)
    if document is None:
        raise UserError(f"{path}: is empty: name a DPO config of TRL, LLaMA-Factory or axolotl")
    if not isinstance(document, dict):
        raise UserError(
            f"{path}: is a {_kind(document)}, not a mapping of settings: name a DPO config of one of the tools"
        )
    return document


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "text" if isinstance(value, str) else "single value"


def _tool(document: Mapping[str, Any], tool: str, where: str) -> Tool:
    """The tool that a config belongs to: the one that knows the most of its settings."""
    if "config" in (document.get("parameters") or {}) or {"finetuning_type", "dpo"} <= document.keys():
        raise UserError(f"{where}: is a config of this project already: run `posttrain check` on it")
    if tool != "auto":
        if tool not in TOOLS:
            raise UserError(f"--from: {tool} is not known: must be auto, {', '.join(TOOLS)}")
        return TOOLS[tool]
    known = {key: sum(found.find(str(name)) is not None for name in document) for key, found in TOOLS.items()}
    most = max(known.values())
    if most == 0:
        names = ", ".join(found.name for found in TOOLS.values())
        raise UserError(f"{where}: has no setting of {names}: name a DPO config of one of them")
    candidates = [key for key, n in known.items() if n == most]
    if len(candidates) > 1:
        names = " or ".join(TOOLS[key].name for key in candidates)
        raise UserError(f"{where}: may be a config of {names}: say which with --from {' or --from '.join(candidates)}")
    return TOOLS[candidates[0]]


def _refuse_other_trainings(tool: Tool, document: Mapping[str, Any], where: str) -> None:
    """Nothing, if the file trains DPO.

    Raises:
        UserError: it trains something else.
    """
    other = None
    if tool.key == "llama-factory":
        stage, loss = document.get("stage"), document.get("pref_loss")
        if stage != "dpo":
            other = f"stage is {stage}" if stage else "stage is not set, which means sft"
        elif loss in ("orpo", "simpo", "kto_pair"):
            other = f"pref_loss is {loss}"
    elif tool.key == "axolotl":
        rl = document.get("rl")
        if rl not in ("dpo", "ipo"):
            other = f"rl is {rl}" if rl else "rl is not set, which means SFT"
    else:
        for trainer, names in OTHER_TRAINERS.items():
            if found := [name for name in names.split() if name in document]:
                other = f"{found[0]} is a setting of TRL's {trainer}"
                break
    if other:
        raise UserError(f"{where}: is not a DPO config ({other}): only DPO configs can be imported")


def _number(value: Any) -> Any:
    """The value; text such as `5e-5`, which YAML does not read as a number, becomes one."""
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def _dataset_info(source: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's dataset_info.json, if it lies where `dataset_dir` says."""
    if isinstance(source, Mapping):
        return {}
    folder = str(document.get("dataset_dir") or "data")
    for base in (Path(), Path(source).parent):
        try:
            found = json.loads((base / folder / "dataset_info.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return found if isinstance(found, dict) else {}
    return {}
