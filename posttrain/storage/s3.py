"""S3-compatible object stores: listing, versioned downloads and verified uploads.

Endpoint and credentials are configured as for boto3: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` for MinIO, Ceph and others;
keys from the environment, the shared credentials files or the machine's role.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from fsspec.utils import glob_translate

from posttrain.errors import UserError
from posttrain.storage.cache import cache_dir

_URL = re.compile(r"s3://([^/]+)/?(.*)", re.DOTALL)
PART_BYTES = 64 * 2**20
"""Part size of multipart uploads. S3 allows 10,000 parts, which is 625 GiB."""
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10, 60


@dataclass(frozen=True)
class StoredObject:
    """One version of an object in S3."""

    bucket: str
    key: str
    etag: str
    version_id: str | None
    """None if the bucket is not versioned."""
    n_bytes: int

    @property
    def url(self) -> str:
        """URL of the object."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def version(self) -> str:
        """Version id, or ETag if the bucket is not versioned."""
        return self.version_id or self.etag


class ObjectStore:
    """The object store configured for boto3. Failed requests are retried up to `AWS_MAX_ATTEMPTS` (3) times."""

    def __init__(self) -> None:
        with _answering("S3"):
            self._client = _client()

    def find(self, url: str, is_wanted: Callable[[str], bool]) -> tuple[list[StoredObject], str]:
        """Return the objects at a URL, sorted by key, and the common prefix of their keys up to a `/`.

        Args:
            url: `s3://bucket/` followed by a key, a prefix of whole path parts, or a glob, in which `**` matches `/`.
            is_wanted: filter for the objects of a prefix or glob; called with the key without the common prefix.

        Raises:
            UserError: there are no such objects, or the store does not answer.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise UserError(f"{url}: has no bucket: use the form s3://bucket/key")
        bucket, key = match.groups()
        with _answering(url):
            if key and not key.endswith("/") and not glob.has_magic(key) and (found := self._head(bucket, key)):
                return [found], key[: key.rfind("/") + 1]
            keys, root = self._list(bucket, key)
            wanted = [name for name in keys if is_wanted(name[len(root) :])]
            found_all = [item for item in (self._head(bucket, name) for name in wanted) if item is not None]
        if not found_all:
            what = f"none of its {len(keys)} objects has a supported format" if keys else "does not exist"
            raise UserError(f"{url}: {what}: correct the bucket, key or glob, or AWS_ENDPOINT_URL")
        return found_all, root

    def fetch(self, item: StoredObject) -> Path:
        """Return the path of a local copy of an object. If it is not cached, it is downloaded atomically.

        Raises:
            UserError: the store refuses access, or the object changed during the download.
        """
        identity = "\n".join([self._client.meta.endpoint_url, item.url, item.version, item.etag])
        folder = cache_dir() / "s3" / hashlib.sha256(identity.encode()).hexdigest()[:32]
        file = folder / PurePosixPath(item.key).name
        if file.exists():
            return file
        part = folder / f".{uuid.uuid4().hex}"
        version = {"VersionId": item.version_id} if item.version_id else {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _answering(item.url):
                self._client.download_file(item.bucket, item.key, str(part), ExtraArgs=version)
                after = item if item.version_id else self._head(item.bucket, item.key)
            if after != item or part.stat().st_size != item.n_bytes:
                raise UserError(f"{item.url}: changed while it was read: run again when it is complete")
            os.replace(part, file)
        except OSError as error:
            raise UserError(
                f"{item.url}: cannot be written to {folder} ({error.strerror}): free space there, or set POSTTRAIN_CACHE"
            ) from error
        finally:
            with suppress(OSError):
                part.unlink()
        return file

    def _head(self, bucket: str, key: str) -> StoredObject | None:
        """Return the newest version of an object, or None if it does not exist."""
        try:
            answer = self._client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response["ResponseMetadata"].get("HTTPStatusCode") == 404:
                return None
            raise
        version = answer.get("VersionId")
        return StoredObject(
            bucket, key, answer["ETag"].strip('"'), None if version == "null" else version, answer["ContentLength"]
        )

    def _list(self, bucket: str, key: str) -> tuple[list[str], str]:
        """Return the sorted keys of a prefix or glob, and their common prefix."""
        if glob.has_magic(key):
            fixed = key[: re.search(r"[*?\[]", key).start()]  # type: ignore[union-attr]
            wanted = re.compile(glob_translate(key))
        else:
            fixed = key if not key or key.endswith("/") else f"{key}/"
            wanted = re.compile(".*", re.DOTALL)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=fixed)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        matching = sorted(name for name in keys if wanted.fullmatch(name) and not name.endswith("/"))
        return matching, fixed[: fixed.rfind("/") + 1]


def upload_file(path: Path, uri: str) -> None:
    """Upload a file to `s3://bucket/key`, in parts if it is large. Nothing is sent if the object already has this content.

    Each part is sent with its sha256, which the store verifies, and the stored object is compared at the end.

    Raises:
        UserError: the store refuses access, cannot be reached, or has other content at the end.
    """
    bucket, key = _split(uri)
    size, checksum = path.stat().st_size, _checksum(path)
    with _answering(uri):
        store = _client()
        if _is_stored(store, bucket, key, size, checksum):
            return
        parts = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
        store.upload_file(str(path), bucket, key, ExtraArgs={"ChecksumAlgorithm": "SHA256"}, Config=parts)
        if not _is_stored(store, bucket, key, size, checksum):
            raise UserError(f"{uri}: the stored object differs from the file that was sent: upload it again")


def put_text(text: str, uri: str) -> None:
    """Write a small object atomically.

    Raises:
        UserError: the store refuses access or cannot be reached.
    """
    bucket, key = _split(uri)
    with _answering(uri):
        _client().put_object(Bucket=bucket, Key=key, Body=text.encode(), ChecksumAlgorithm="SHA256")


def _split(uri: str) -> tuple[str, str]:
    match = _URL.fullmatch(uri)
    if match is None:
        raise UserError(f"{uri}: has no bucket: use the form s3://bucket/key")
    return match.group(1), match.group(2)


def _is_stored(store: Any, bucket: str, key: str, size: int, checksum: str) -> bool:
    """Return whether an object has this checksum. If the store has no checksum, the object is read back."""
    try:
        found = store.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return False
        raise
    if found["ContentLength"] != size:
        return False
    stored = found.get("ChecksumSHA256")
    if stored is None:
        stored = _checksum_of(store.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(PART_BYTES), size)
    return bool(stored.split("-")[0] == checksum)  # S3 appends the number of parts


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return _checksum_of(iter(lambda: file.read(PART_BYTES), b""), path.stat().st_size)


def _checksum_of(parts: Iterator[bytes], size: int) -> str:
    """Return the checksum that S3 reports: sha256 of a small object; for a multipart upload, sha256 of the parts' sha256."""
    digests = [hashlib.sha256(part).digest() for part in parts] or [hashlib.sha256(b"").digest()]
    whole = digests[0] if size < PART_BYTES else hashlib.sha256(b"".join(digests)).digest()
    return base64.b64encode(whole).decode()


def _client() -> Any:
    # A new session, because the default one keeps the first credentials that it found.
    config = Config(retries={"mode": "standard"}, connect_timeout=_CONNECT_TIMEOUT_S, read_timeout=_READ_TIMEOUT_S)
    return boto3.session.Session().client("s3", config=config)


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turn errors of boto3 into a `UserError`."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UserError(
            f"{url}: no credentials were found ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except ClientError as error:
        code, status = error.response["Error"].get("Code"), error.response["ResponseMetadata"].get("HTTPStatusCode")
        remedy = {
            403: "check the credentials and their permission to read and list the bucket",
            404: "correct the bucket, or AWS_ENDPOINT_URL",
            301: "the bucket is in another region: set AWS_REGION",
        }.get(status or 0, "try again, or check AWS_ENDPOINT_URL")
        raise UserError(f"{url}: the object store refused the request ({code}, status {status}): {remedy}") from error
    except (BotoCoreError, boto3.exceptions.Boto3Error, ValueError) as error:
        raise UserError(
            f"{url}: the object store cannot be reached ({error}): check AWS_ENDPOINT_URL, the region and the network"
        ) from error
