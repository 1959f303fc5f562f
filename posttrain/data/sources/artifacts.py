"""Rows that are an artifact of an earlier run: `artifact:NAME` for the newest version, `artifact:NAME:VERSION` for one of them.

The library does not know where artifacts are. `find_artifacts_with` connects it to a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from posttrain.config import Source
from posttrain.config.sections.data_section import ARTIFACT
from posttrain.data.sources.records import OpenSource, SourceRecord
from posttrain.errors import UserError


@dataclass(frozen=True)
class StoredRows:
    """The rows of an artifact."""

    name: str
    version: str
    n_rows: int
    digest: str
    read: Callable[[], Iterator[dict[str, Any]]]


class _Connection:
    find: Callable[[str, str | None], StoredRows] | None = None


def find_artifacts_with(find: Callable[[str, str | None], StoredRows]) -> None:
    """Set the function that finds an artifact by its name and version (None: the newest)."""
    _Connection.find = staticmethod(find)


def stored_rows(location: str) -> StoredRows:
    """Return the artifact that a path `artifact:NAME[:VERSION]` names.

    Raises:
        UserError: there is none, or no store is connected.
    """
    name, _, version = location.removeprefix(ARTIFACT).partition(":")
    if _Connection.find is None:
        raise UserError(
            f"{location}: artifacts are found by the command line, pipelines and steps only: read the Parquet file of the artifact "
            "instead, or call posttrain.data.sources.artifacts.find_artifacts_with"
        )
    return _Connection.find(name, version or None)


def open_artifact(source: Source) -> OpenSource:
    """Return the rows of an artifact, all of which are for training; the splits of the config apply to their prompts."""
    found = stored_rows(source.location)

    def read() -> Iterator[SourceRecord]:
        for n, values in enumerate(islice(found.read(), source.row_limit), start=1):
            yield SourceRecord(found.name, "train", f"{found.name}:{found.version}:{n}", values)

    return OpenSource(frozenset({"train"}), found.digest, found.version, read)
