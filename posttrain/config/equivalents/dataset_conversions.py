"""Convert the dataset settings of other tools to data.sources."""

from __future__ import annotations

import re
from typing import Any

from posttrain.config.equivalents.conversions import Settings
from posttrain.config.equivalents.entry import Equivalent
from posttrain.config.equivalents.fates import Fate, NotCarriedOver, NotNeeded, Reading

SourceValues = dict[str, Any]

AXOLOTL_COLUMNS: dict[str, SourceValues] = {
    "argilla": {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
    "icr": {"prompt": "input"},
    "intel": {"prompt": "question"},
    "prompt_pairs": {},
    "ultra": {},
    "argilla_chat": {},
    "default": {},
}
"""The second part of axolotl's `type`, and the columns that it reads under other names than ours."""
SAME_IN_AXOLOTL = {
    "roles": ({"system": ["system"], "user": ["user"], "assistant": ["assistant"]},),
    "message_property_mappings": ({"role": "role", "content": "content"}, {"role": "from", "content": "value"}),
    "ds_type": ("json", "jsonl", "csv", "parquet"),
    "trust_remote_code": (False,),
}
"""Values that have the same effect here without a setting."""


def trl_dataset(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """The one source that TRL's `dataset_*` settings describe."""
    if reading.get("datasets"):
        raise NotNeeded("TRL reads `datasets` where both are set")
    if not reading.get("dataset_name"):
        raise NotCarriedOver("dataset_name is missing")
    names = {"path": "dataset_name", "subset": "dataset_config", "train_split": "dataset_train_split"}
    source = {ours: reading.get(theirs) for ours, theirs in names.items()}
    source["test_split"] = reading.get("dataset_test_split")
    return {"data.sources": [_without_empty(source)]}


def trl_datasets(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """One source for each of TRL's `datasets`."""
    names = {"path": "path", "name": "subset", "data_dir": "data_dir", "split": "train_split"}
    sources = []
    for i, dataset in enumerate(_list_of_mappings(value, "path")):
        source = _renamed(dataset, names, f"datasets[{i}]", reading)
        for name in dataset.keys() - names.keys() - {"columns"}:
            _lose(reading, f"datasets[{i}].{name}", dataset[name], "a source has no such setting")
        if dataset.get("columns"):
            reading.inner.append(
                Fate(f"datasets[{i}].columns", dataset["columns"], "not needed", reason="columns are recognised")
            )
        sources.append(source)
    return {"data.sources": sources}


def dataset_mixer(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """One source for each dataset of the Alignment Handbook's `dataset_mixer`."""
    mixer = reading.get("dataset_mixer")
    if not isinstance(mixer, dict) or not mixer:
        raise NotCarriedOver("dataset_mixer is missing")
    splits = list(reading.get("dataset_splits", []))
    train = next((name for name in splits if "train" in name), None)
    test = next((name for name in splits if "test" in name), None)
    sources = []
    for path, share in mixer.items():
        sources.append(_without_empty({"path": path, "train_split": train, "test_split": test}))
        if share != 1 and entry.name == "dataset_mixer":
            _lose(
                reading,
                f"dataset_mixer.{path}",
                share,
                "a share of the rows is not offered: set `limit` to a number of rows",
            )
    if entry.name == "dataset_splits":
        for name in splits:
            if name not in (train, test):
                _lose(reading, f"dataset_splits.{name}", name, "a source has one training and one test split")
    return {"data.sources": sources}


def llama_factory_dataset(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """One source for each of the names in LLaMA-Factory's `dataset`."""
    names = _names(reading.get("dataset"))
    if not names:
        raise NotCarriedOver("dataset is missing")
    weights = _weights(reading, len(names), entry)
    sources = []
    for name, weight in zip(names, weights, strict=True):
        source = _registered(name, reading, entry)
        sources.append(_without_empty({**source, "limit": reading.get("max_samples"), "weight": weight}))
    if entry.name == "dataset_dir" and not any(name in reading.dataset_info for name in names):
        raise NotCarriedOver(
            "its dataset_info.json was not found: each source has its name in LLaMA-Factory as its path"
        )
    return {"data.sources": sources}


def axolotl_datasets(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """One source for each of axolotl's `datasets`."""
    sources = []
    templates = set()
    for i, dataset in enumerate(_list_of_mappings(value, "path")):
        where = f"datasets[{i}]"
        source = _renamed(dataset, {"path": "path", "name": "subset", "revision": "revision"}, where, reading)
        _add_files(source, dataset, where, reading)
        _add_split(source, dataset, where, reading)
        columns, template = _columns_of_type(dataset, where, reading)
        templates.add(template)
        for ours, name in (("prompt", "field_messages"), ("chosen", "field_chosen"), ("rejected", "field_rejected")):
            if dataset.get(name):
                columns[ours] = dataset[name]
                _carry(reading, f"{where}.{name}", dataset[name], "data.sources[].columns")
        if columns := {ours: theirs for ours, theirs in columns.items() if ours != theirs}:
            source["columns"] = columns
        _account_for_others(dataset, where, reading)
        sources.append(source)
    settings: Settings = {"data.sources": sources}
    if templates == {"chatml"}:
        settings["model.chat_template"] = "chatml"
    return settings


def _columns_of_type(dataset: SourceValues, where: str, reading: Reading) -> tuple[SourceValues, str]:
    """The columns that a dataset's `type` reads, and the chat template that it writes."""
    kind = dataset.get("type")
    if kind is None:
        return {}, ""
    key = f"{where}.type"
    if isinstance(kind, dict):
        ours = {
            "field_prompt": "prompt",
            "field_chosen": "chosen",
            "field_rejected": "rejected",
            "field_system": "system",
        }
        for name in kind.keys() - ours.keys():
            _lose(
                reading,
                f"{key}.{name}",
                kind[name],
                "the chat template (model.chat_template) writes prompts and responses",
            )
        columns = {ours[name]: column for name, column in kind.items() if name in ours and column}
        _carry(reading, key, kind, "data.sources[].columns")
        return columns, ""
    template, _, layout = str(kind).partition(".")
    if (layout or "default") not in AXOLOTL_COLUMNS or template not in ("chatml", "llama3", "chat_template"):
        _lose(
            reading, key, kind, "the layout of rows is recognised from the columns; name them in `columns` if it is not"
        )
        return {}, ""
    columns = dict(AXOLOTL_COLUMNS[layout or "default"])
    if template == "chat_template" and layout in ("", "default"):
        columns = {"prompt": dataset.get("field_messages") or "messages"}
    reason = "the layout of rows is recognised"
    if template != "chat_template":
        reason += (
            "; model.chat_template is chatml" if template == "chatml" else "; the tokenizer's own chat template is used"
        )
    _carry(reading, key, kind, "data.sources[].columns", reason)
    return columns, template


def _add_files(source: SourceValues, dataset: SourceValues, where: str, reading: Reading) -> None:
    """The files of a dataset as its path."""
    files = dataset.get("data_files")
    if not files:
        return
    files = [files] if isinstance(files, str) else list(files)
    if len(files) == 1 and dataset.get("path") in ("json", "jsonl", "csv", "parquet", None):
        source["path"] = files[0]
        _carry(reading, f"{where}.data_files", files, "data.sources[].path")
    else:
        _lose(
            reading,
            f"{where}.data_files",
            files,
            "a source is one file, one folder or one dataset: make one of each file",
        )


def _add_split(source: SourceValues, dataset: SourceValues, where: str, reading: Reading) -> None:
    """The split of a dataset, and the number of rows in a slice of it."""
    if not (split := dataset.get("split")):
        return
    found = re.fullmatch(r"([\w.-]+)(?:\[:(\d+)\])?", str(split))
    if not found:
        _lose(reading, f"{where}.split", split, "only the first rows of a split can be taken (`limit`)")
        return
    source["train_split"] = found.group(1)
    if found.group(2):
        source["limit"] = int(found.group(2))
    _carry(reading, f"{where}.split", split, "data.sources[].train_split")


def _account_for_others(dataset: SourceValues, where: str, reading: Reading) -> None:
    """Fates of a dataset's settings that no other function has read."""
    read = {
        "path",
        "name",
        "revision",
        "data_files",
        "split",
        "type",
        "field_messages",
        "field_chosen",
        "field_rejected",
    }
    for name, value in dataset.items():
        if name in read:
            continue
        if value in (None, [], {}) or value in SAME_IN_AXOLOTL.get(name, ()):
            reading.inner.append(Fate(f"{where}.{name}", value, "not needed", reason="recognised without it"))
        else:
            _lose(reading, f"{where}.{name}", value, "a source has no such setting")


def _registered(name: str, reading: Reading, entry: Equivalent) -> SourceValues:
    """A source from its entry in dataset_info.json; without one, the name is its path."""
    info = reading.dataset_info.get(name)
    own_name = reading.get("dataset_dir") == "ONLINE"
    if not isinstance(info, dict):
        if entry.name == "dataset" and not own_name:
            reason = (
                f"{name} is a name in LLaMA-Factory's dataset_info.json, which was not found: replace the path of the source by "
                "the file, folder or Hub dataset of that name."
            )
            reading.inner.append(Fate("dataset", name, "not carried over", ("data.sources",), reason))
        return {"path": name}
    path = info.get("hf_hub_url") or info.get("file_name") or name
    if "file_name" in info and "hf_hub_url" not in info:
        path = f"{reading.get('dataset_dir', 'data')}/{path}"
    columns = dict(info.get("columns") or {})
    if info.get("formatting") == "sharegpt":
        columns["prompt"] = columns.pop("messages", "conversations")
    known = {
        ours: theirs for ours, theirs in columns.items() if ours in ("prompt", "chosen", "rejected", "system", "tools")
    }
    if entry.name == "dataset":
        for ours in columns.keys() - known.keys():
            _lose(reading, f"dataset.{name}.columns.{ours}", columns[ours], "this column is not read")
    mapped = {ours: theirs for ours, theirs in known.items() if ours != theirs}
    return {"path": path, "subset": info.get("subset"), "train_split": info.get("split"), "columns": mapped}


def _weights(reading: Reading, n: int, entry: Equivalent) -> list[Any]:
    """The weight of each dataset, if they are mixed."""
    probabilities = reading.get("interleave_probs")
    if probabilities is None:
        return [None] * n
    weights = [float(p) for p in _names(probabilities)]
    if len(weights) == n:
        return weights
    if entry.name == "interleave_probs":
        raise NotCarriedOver("has not one value for each dataset")
    return [None] * n


def _names(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(name).strip() for name in (value.split(",") if isinstance(value, str) else value)]


def _list_of_mappings(value: Any, key: str) -> list[SourceValues]:
    datasets = [value] if isinstance(value, dict) else value
    if not isinstance(datasets, list) or not datasets or not all(isinstance(item, dict) for item in datasets):
        raise NotCarriedOver(f"is not a list of datasets with a `{key}` each")
    return datasets


def _renamed(dataset: SourceValues, names: dict[str, str], where: str, reading: Reading) -> SourceValues:
    source = {}
    for theirs, ours in names.items():
        if dataset.get(theirs):
            source[ours] = dataset[theirs]
            _carry(reading, f"{where}.{theirs}", dataset[theirs], f"data.sources[].{ours}")
    return source


def _without_empty(source: SourceValues) -> SourceValues:
    return {name: value for name, value in source.items() if value not in (None, {}, [])}


def _carry(reading: Reading, key: str, value: Any, ours: str, reason: str = "") -> None:
    reading.inner.append(Fate(key, value, "carried over", (ours,), reason))


def _lose(reading: Reading, key: str, value: Any, reason: str) -> None:
    reading.inner.append(Fate(key, value, "not carried over", reason=reason))
