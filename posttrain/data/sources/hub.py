"""Datasets on the Hugging Face Hub, read at a recorded commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from posttrain.config import Source
from posttrain.data.sources.records import SPLIT_ORDER, OpenSource, SourceRecord, split_names
from posttrain.errors import UserError

SHORT_NAMES = {
    "hh-rlhf": "Anthropic/hh-rlhf",
    "oasst1": "OpenAssistant/oasst1",
    "shp": "stanfordnlp/SHP",
    "ultrafeedback": "HuggingFaceH4/ultrafeedback_binarized",
}
"""Hub id by short name of well-known preference datasets."""

_OWN_SPLITS = {"HuggingFaceH4/ultrafeedback_binarized": ("train_prefs", "test_prefs")}
"""Names of the training and test splits of datasets with other names, used if the settings have their defaults."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_on_hub(source: Source) -> bool:
    """Return whether a source's path has the form of a Hub id or is a short name."""
    return source.location in SHORT_NAMES or _HUB_ID.fullmatch(source.location) is not None


def open_hub(source: Source) -> OpenSource:
    """Download a dataset from the Hub into its cache and return it ready for reading.

    Raises:
        UserError: the download failed, the dataset has no training split or, while reading, a row cannot be decoded.
    """
    import datasets

    dataset_id = SHORT_NAMES.get(source.location, source.location)
    revision = _resolve_revision(source, dataset_id)
    had_no_bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_dataset(
            dataset_id, source.subset, data_dir=source.data_dir, revision=revision or source.revision
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(source, error) from error
    finally:
        if not had_no_bars:
            datasets.enable_progress_bars()
    by_split = _by_split(source, dataset_id, dataset)
    label = "/".join(part for part in (dataset_id, source.subset, source.data_dir) if part)

    def read() -> Iterator[SourceRecord]:
        for split in sorted(by_split, key=SPLIT_ORDER.index):
            yield from islice(_records(by_split[split], label, split), source.row_limit)

    return OpenSource(frozenset(by_split), digest=None, revision=revision, read=read)


def _by_split(source: Source, dataset_id: str, dataset: Any) -> dict[str, Any]:
    names = split_names(source)
    train, test = _OWN_SPLITS.get(dataset_id, ("train", "test"))
    if (source.train_split, source.test_split) == ("train", "test"):
        names |= {train: "train", test: "test"}
    by_split = {names[name]: rows for name, rows in dataset.items() if name in names}
    if "train" not in by_split:
        raise UserError(
            f"{source.path}: has no split {source.train_split!r}, only {', '.join(dataset)}: set `train_split` to the one to "
            "train on"
        )
    return by_split


def _records(rows: Any, label: str, split: str) -> Iterator[SourceRecord]:
    import pyarrow as pa

    n = 0
    try:
        for values in rows:
            n += 1
            yield SourceRecord(label, split, f"{label}:{split}:{n}", values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{label}: cannot be read after row {n} of {split} ({_first_line(error)}): delete it from the Hub cache (`hf cache`), "
            "so that it is downloaded again"
        ) from error


def _resolve_revision(source: Source, dataset_id: str) -> str | None:
    """Return the commit of `source.revision`; None if the Hub is unreachable, in which case a cached copy may be used."""
    from huggingface_hub import HfApi, errors

    if source.revision and _COMMIT.fullmatch(source.revision):
        return source.revision
    try:
        return HfApi().dataset_info(dataset_id, revision=source.revision).sha
    except errors.HfHubHTTPError as error:
        raise _unreachable(source, error) from error
    except (errors.HTTPError, OSError):  # type: ignore[attr-defined]  # of the installed HTTP client
        return None


def _unreachable(source: Source, error: Exception) -> UserError:
    return UserError(
        f"{source.path}: is not a file or folder, and loading it from the Hub failed (revision {source.revision or 'newest'}): "
        f"{_first_line(error)}. Check the id, revision, subset, data_dir and the network, and HF_TOKEN for a private or gated "
        "dataset; or download the files and set path to their folder"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
