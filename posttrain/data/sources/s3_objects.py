"""Objects in S3-compatible stores: an object, a prefix or a glob, read like files."""

from __future__ import annotations

from pathlib import PurePosixPath

from posttrain.config import Source
from posttrain.data.sources.files import DataFile, open_found
from posttrain.data.sources.readers import SUFFIX, SUFFIXES, is_data
from posttrain.data.sources.records import OpenSource
from posttrain.errors import UserError

SCHEME = "s3://"


def is_url(location: str) -> bool:
    """Return whether a location is in S3."""
    return location.startswith(SCHEME)


def open_objects(source: Source) -> OpenSource:
    """Return the objects in S3, sorted by key. Versions that are not cached are downloaded.

    Raises:
        UserError: there are no such objects, or the store refuses access.
    """
    from posttrain.storage import s3 as storage  # boto3 takes a third of a second to import

    store = storage.ObjectStore()
    found, root = store.find(source.location, _is_data)
    if not SUFFIX.search(found[0].key):
        raise UserError(f"{source.path}: must end in {SUFFIXES}: rename or convert it")
    files = [
        DataFile(
            shown=item.url,
            path=PurePosixPath(item.bucket, item.key),
            below=PurePosixPath(item.key[len(root) :]),
            local=store.fetch(item),
        )
        for item in found
    ]
    return open_found(source, files, objects={item.url: item.version for item in found})


def _is_data(below: str) -> bool:
    """Return whether an object is a data file and not hidden, such as `.cache/x.json`."""
    path = PurePosixPath(below)
    return is_data(path.name) and not any(part.startswith(".") for part in path.parts)
