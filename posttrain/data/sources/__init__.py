"""Reads rows lazily and in order from files, S3, the Hub, artifacts of earlier runs or the demo."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from posttrain.config import Source
from posttrain.config.sections.data_section import ARTIFACT
from posttrain.data.sources import artifacts, files, hub, s3_objects
from posttrain.data.sources.records import OpenSource, SourceRecord
from posttrain.errors import UserError

__all__ = ["DEMO", "OpenSource", "SourceRecord", "count_rows", "open_source"]

DEMO = "demo"


def open_source(source: Source) -> OpenSource:
    """Locate a source and return it ready for reading.

    `artifact:…` is an artifact of an earlier run. `s3://…` is in S3. A path that exists, has wildcards or has the suffix of a data
    file is local. `organisation/name` and the short names of well-known datasets are on the Hub.

    Raises:
        UserError: the source does not exist, cannot be read or has no training rows.
    """
    if source.location.startswith(ARTIFACT):
        _refuse_hub_settings(source)
        return artifacts.open_artifact(source)
    if hub.is_on_hub(source) and not _is_here(source):
        return hub.open_hub(source)
    _refuse_hub_settings(source)
    if source.location == DEMO:
        return _open_demo(source)
    if s3_objects.is_url(source.location):
        return s3_objects.open_objects(source)
    if files.is_local(source.location):
        return files.open_files(source)
    raise UserError(
        f"{source.path}: is neither a file or folder, nor a Hub id (organisation/name), nor one of the short names "
        f"{', '.join(hub.SHORT_NAMES)}: correct the path"
    )


def count_rows(source: Source) -> dict[str, int] | None:
    """Return the number of rows in each split before any check; None for the Hub and S3, which are not queried.

    Raises:
        UserError: as for `open_source`.
    """
    if source.location == DEMO:
        from posttrain.data.demo import pairs as demo

        counts = {"train": demo.N_ROWS}
    elif source.location.startswith(ARTIFACT):
        counts = {"train": artifacts.stored_rows(source.location).n_rows}
    elif s3_objects.is_url(source.location):
        return None
    elif files.is_local(source.location):
        counts = files.count_rows(source)
    else:
        if source.location.startswith((".", "/", "~")):
            files.find_files(source.location)  # raises, because there is none
        return None
    return {split: n if source.row_limit is None else min(n, source.row_limit) for split, n in counts.items()}


def _is_here(source: Source) -> bool:
    return source.location == DEMO or files.is_local(source.location)


def _refuse_hub_settings(source: Source) -> None:
    """Check that no setting is set that applies only to the Hub."""
    for name in ("revision", "subset", "data_dir"):
        if (value := getattr(source, name)) is not None:
            raise UserError(
                f"{source.path}: {name} {value!r} applies only to datasets on the Hub, and this "
                f"source is not one: remove {name}, or correct the path"
            )


def _open_demo(source: Source) -> OpenSource:
    from posttrain.data.demo import pairs as demo

    def read() -> Iterator[SourceRecord]:
        for n, values in enumerate(islice(demo.rows(), source.row_limit), start=1):
            yield SourceRecord(DEMO, "train", f"demo:{n}", values)

    return OpenSource(frozenset({"train"}), digest=None, revision=None, read=read)
