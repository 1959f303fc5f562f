"""Rows and files that differ between the data of two runs."""

from __future__ import annotations

from collections import defaultdict

import pyarrow.parquet as pq
from zenml.artifact_stores import BaseArtifactStore
from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.models import ArtifactVersionResponse

from posttrain.data.report import DataReport, SourceReport
from posttrain.data.rows import SPLITS
from posttrain.errors import UserError
from posttrain.orchestration.running_step.folder_materializer import FILES
from posttrain.orchestration.running_step.stored_files import place_of
from posttrain.reporting.past_runs.explanation import N_NAMES, RowChanges, listed

Rows = dict[str, tuple[str, str]]
"""Split and source of each row, by its id."""


def row_changes(earlier: ArtifactVersionResponse, later: ArtifactVersionResponse) -> RowChanges | None:
    """Return the rows that only one of two stored sets of preferences has; None if they are the same.

    Raises:
        UserError: one of them is not in its store.
    """
    if earlier.content_hash is not None and earlier.content_hash == later.content_hash:
        return None
    old, new = rows_of(earlier), rows_of(later)
    moved = sum(old[row][0] != new[row][0] for row in old.keys() & new.keys())
    found = RowChanges(_only(new, old), _only(old, new), moved)
    return found if found.added or found.removed or moved else None


def rows_of(preferences: ArtifactVersionResponse) -> Rows:
    """Return split and source of each row, without reading its text.

    Raises:
        UserError: the files are not in their store.
    """
    store, rows = _store_of(preferences), {}
    try:
        folder = f"{place_of(preferences.uri, store)}/{FILES}"
        for split in SPLITS:
            with store.open(f"{folder}/{split}.parquet", "rb") as file:
                table = pq.read_table(file, columns=["id", "source"])
            for row, source in zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True):
                rows[row] = split, source
    except OSError as error:
        raise UserError(
            f"the rows of {preferences.uri} cannot be read ({type(error).__name__}): they were deleted, or are in a store that "
            "this machine does not reach"
        ) from error
    return rows


def file_changes(earlier: DataReport, later: DataReport) -> list[str]:
    """Return a line for each source of which the files, the commit or the number of rows differ."""
    old, new = _by_path(earlier), _by_path(later)
    lines = [f"{path}: {'new' if path in new else 'removed'} source" for path in sorted(old.keys() ^ new.keys())]
    return lines + [line for path in sorted(old.keys() & new.keys()) if (line := _changed(path, old[path], new[path]))]


def _changed(path: str, old: SourceReport, new: SourceReport) -> str:
    if old.revision != new.revision:
        return f"{path}: commit {old.revision} -> {new.revision}"
    if old.objects or new.objects:
        names = [
            f"{url} {'is new' if url not in old.objects else 'is gone' if url not in new.objects else 'was written again'}"
            for url in sorted(old.objects.keys() | new.objects.keys())
            if old.objects.get(url) != new.objects.get(url)
        ]
        return listed(names, N_NAMES)
    if old.digest != new.digest:
        return f"{path}: other content, {old.n_rows:,} -> {new.n_rows:,} rows"
    return ""


def _by_path(report: DataReport) -> dict[str, SourceReport]:
    return {source.path: source for source in report.sources}


def _only(rows: Rows, other: Rows) -> dict[str, list[str]]:
    """Return the ids of the rows that `other` lacks, by source, the largest first."""
    found = defaultdict(list)
    for row, (_, source) in rows.items():
        if row not in other:
            found[source].append(row)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _store_of(artifact: ArtifactVersionResponse) -> BaseArtifactStore:
    """Return the store that an artifact is in, which need not be that of the active stack.

    Raises:
        UserError: the store is not registered any more.
    """
    if artifact.artifact_store_id is None:
        raise UserError(f"the artifact store of {artifact.uri} is not registered any more")
    model = Client().get_stack_component(StackComponentType.ARTIFACT_STORE, artifact.artifact_store_id)
    store = BaseArtifactStore.from_model(model)
    assert isinstance(store, BaseArtifactStore)
    return store
