"""Types that all kinds of sources share, and the names of splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from posttrain.config import Source

SPLIT_ORDER = ("train", "validation", "test")
"""Order in which the splits of a source are read."""
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
"""Names of validation splits."""


class SourceRecord(NamedTuple):
    """One row of a source."""

    source: str
    """Short name of its origin; independent of the machine."""
    split: str
    """Its split at the source: train, validation or test."""
    where: str
    """Location for display, such as file and line."""
    values: dict[str, Any] | None
    """Value by column name; None if the row cannot be parsed."""


@dataclass(frozen=True)
class OpenSource:
    """A source that was found and is ready for reading."""

    splits: frozenset[str]
    """The splits of the source."""
    digest: str | None
    """sha256 of its files; None if it has none."""
    revision: str | None
    """The commit on the Hub, if known."""
    read: Callable[[], Iterator[SourceRecord]]
    """Function that yields the rows: training first, each split in the order of the source."""
    objects: dict[str, str] = field(default_factory=dict)
    """Version id by URL of each object in S3, or its ETag if the bucket is not versioned."""


def split_names(source: Source) -> dict[str, str]:
    """Return our split name by the source's."""
    names = dict.fromkeys(VALIDATION_NAMES, "validation")
    if source.test_split is not None:
        names[source.test_split] = "test"
    names[source.train_split] = "train"
    return names
