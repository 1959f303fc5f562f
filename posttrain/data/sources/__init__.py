"""Rows as their source has them: files, S3, the Hub or the demo, read lazily and in the source's own order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from posttrain.config import Source
from posttrain.data.sources import files, hub, s3_objects
from posttrain.data.sources.records import OpenSource, SourceRecord
from posttrain.errors import UserError

__all__ = ["DEMO", "OpenSource", "SourceRecord", "count_rows", "open_source"]

DEMO = "demo"


def open_source(source: Source) -> OpenSource:
    """The source, found and ready to be read.

    `s3://…` is in S3; a path that exists, has wildcards or ends like a data file is local; `organisation/name` and the
    short names of well-known sets are on the Hub.

    Raises:
        UserError: there is no such source, it cannot be read, or it has no training rows.
    """
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
        f"{source.path}: there is no such file or folder, and it is no Hub id, which has the form organisation/name, nor "
        f"one of the short names {', '.join(hub.SHORT_NAMES)}: correct the path"
    )


def count_rows(source: Source) -> dict[str, int] | None:
    """The number of rows in each split, before any check; None for the Hub and S3, which are not asked.

    Raises:
        UserError: as `open_source`.
    """
    if source.location == DEMO:
        from posttrain.data.demo import pairs as demo

        counts = {"train": demo.N_ROWS}
    elif s3_objects.is_url(source.location):
        return None
    elif files.is_local(source.location):
        counts = files.count_rows(source)
    else:
        if source.location.startswith((".", "/", "~")):
            files.find_files(source.location)  # says that there is none
        return None
    return {split: n if source.row_limit is None else min(n, source.row_limit) for split, n in counts.items()}


def _is_here(source: Source) -> bool:
    return source.location == DEMO or files.is_local(source.location)


def _refuse_hub_settings(source: Source) -> None:
    """Nothing, if no setting is there that only the Hub would heed."""
    for name in ("revision", "subset", "data_dir"):
        if (value := getattr(source, name)) is not None:
            raise UserError(
                f"{source.path}: {name} {value!r} is for datasets on the Hub, and this source is not there, so it would be "
                "ignored: drop it, or correct the path"
            )


def _open_demo(source: Source) -> OpenSource:
    from posttrain.data.demo import pairs as demo

    def read() -> Iterator[SourceRecord]:
        for n, values in enumerate(islice(demo.rows(), source.row_limit), start=1):
            yield SourceRecord(DEMO, "train", f"demo:{n}", values)

    return OpenSource(frozenset({"train"}), digest=None, revision=None, read=read)
