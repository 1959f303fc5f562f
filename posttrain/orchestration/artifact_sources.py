"""Artifacts of earlier runs as sources of data (`data.sources: [{path: "artifact:collected_preferences"}]`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.data.sources.artifacts import StoredRows, find_artifacts_with
from posttrain.errors import UserError


def connect_artifact_sources() -> None:
    """Let the data sources find artifacts in ZenML, which is imported when the first one is read."""
    find_artifacts_with(find_stored_rows)


def find_stored_rows(name: str, version: str | None) -> StoredRows:
    """Return the rows of an artifact version; without a version, of the newest.

    Raises:
        UserError: there is none, or it does not hold preference pairs.
    """
    from zenml.client import Client

    which: dict[str, Any] = {"version": version} if version else {}
    found = Client().list_artifact_versions(artifact=name, sort_by="desc:created", size=1, hydrate=True, **which).items
    shown = f"artifact:{name}" + (f":{version}" if version else "")
    if not found:
        raise UserError(
            f"{shown}: no such artifact: run collect_pipeline first, or list the versions with `zenml artifact version list`"
        )
    table = getattr(found[0].load(), "table", None)
    if table is None or not {"prompt", "chosen", "rejected"} <= set(table.column_names):
        raise UserError(f"{shown}: holds no preference pairs: name an artifact of collect_pipeline")

    def read() -> Iterator[dict[str, Any]]:
        for batch in table.to_batches(1000):
            yield from batch.to_pylist()

    return StoredRows(name, str(found[0].version), table.num_rows, str(found[0].run_metadata["digest"]), read)
