"""What every kind of source gives: records, and the names of splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from posttrain.config import Source

SPLIT_ORDER = ("train", "validation", "test")
"""In which the splits of a source are read."""
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
"""What a source may call the split that is watched during training."""


class SourceRecord(NamedTuple):
    """One row of a source."""

    source: str
    """Short name of where it is from, the same on any machine."""
    split: str
    """The split that its source puts it in: train, validation or test."""
    where: str
    """File and line, or the like, for people."""
    values: dict[str, Any] | None
    """Column name to value; None where the row cannot be read."""


@dataclass(frozen=True)
class OpenSource:
    """A source that was found, and is ready to be read."""

    splits: frozenset[str]
    """The splits that the source itself has."""
    digest: str | None
    """sha256 over the bytes of files."""
    revision: str | None
    """The commit on the Hub, where it could be found out."""
    read: Callable[[], Iterator[SourceRecord]]
    """The rows: training first, each split in the source's order."""
    objects: dict[str, str] = field(default_factory=dict)
    """URL of each object in S3: its version id, or its ETag where the bucket keeps no versions."""


def split_names(source: Source) -> dict[str, str]:
    """What the source calls a split: what we call it."""
    names = dict.fromkeys(VALIDATION_NAMES, "validation")
    if source.test_split is not None:
        names[source.test_split] = "test"
    names[source.train_split] = "train"
    return names
