"""Object stores that speak S3: what lies there, in which version, a copy of it on this machine, and uploads.

Address and credentials are boto3's own: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` for MinIO, Ceph and friends, keys from
the environment, the shared files or the machine's role.
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
"""Of an upload in parts: 10,000 of them, which is S3's limit, are 625 GiB."""
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10, 60


@dataclass(frozen=True)
class StoredObject:
    """An object in one of its versions."""

    bucket: str
    key: str
    etag: str
    version_id: str | None
    """None where the bucket keeps no versions."""
    n_bytes: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def version(self) -> str:
        """What changes when the object does: its version id, else its ETag."""
        return self.version_id or self.etag


class ObjectStore:
    """The object store that boto3 finds configured. Failed requests are repeated as `AWS_MAX_ATTEMPTS` says (3 times)."""

    def __init__(self) -> None:
        with _answering("S3"):
            self._client = _client()

    def find(self, url: str, is_wanted: Callable[[str], bool]) -> tuple[list[StoredObject], str]:
        """The objects at an address in the order of their keys, and how all these keys begin, up to a `/`.

        Args:
            url: `s3://bucket/` and a key, a prefix that ends with a whole name, or a glob, in which `**` crosses `/`.
            is_wanted: called with what follows the common beginning of a key; of objects that are not named by their whole key
                only those are taken for which it is true.

        Raises:
            UserError: there is none, or the store does not answer.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise UserError(f"{url}: has no bucket: it must have the form s3://bucket/key")
        bucket, key = match.groups()
        with _answering(url):
            if key and not key.endswith("/") and not glob.has_magic(key) and (found := self._head(bucket, key)):
                return [found], key[: key.rfind("/") + 1]
            keys, root = self._list(bucket, key)
            wanted = [name for name in keys if is_wanted(name[len(root) :])]
            found_all = [item for item in (self._head(bucket, name) for name in wanted) if item is not None]
        if not found_all:
            what = f"none of the {len(keys)} objects there can be read" if keys else "there is no such object"
            raise UserError(f"{url}: {what}: correct bucket, key or glob, or AWS_ENDPOINT_URL")
        return found_all, root

    def fetch(self, item: StoredObject) -> Path:
        """A copy of an object on this machine: the one that is there, else a download, which is whole or not at all.

        Raises:
            UserError: the store does not give it, or it was overwritten meanwhile.
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
                raise UserError(f"{item.url}: was overwritten while it was read: run again when it is complete")
            os.replace(part, file)
        except OSError as error:
            raise UserError(
                f"{item.url}: cannot be kept in {folder} ({error.strerror}): make room there, or set POSTTRAIN_CACHE"
            ) from error
        finally:
            with suppress(OSError):
                part.unlink()
        return file

    def _head(self, bucket: str, key: str) -> StoredObject | None:
        """The object in its newest version, None where there is none."""
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
        """The sorted keys under a prefix or glob, and what they begin with."""
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
    """Copies a file to `s3://bucket/key`, in parts if it is large; nothing is sent where the object is the same already.

    Every part is sent with its sha256, which the store checks, and what the store has at the end is compared once more.

    Raises:
        UserError: the store refuses, cannot be reached, or has other bytes at the end.
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
            raise UserError(f"{uri}: the store holds other bytes than were sent to it: send them again")


def put_text(text: str, uri: str) -> None:
    """Writes a small object at once: a reader finds the old one or the new one, and never a part.

    Raises:
        UserError: the store refuses or cannot be reached.
    """
    bucket, key = _split(uri)
    with _answering(uri):
        _client().put_object(Bucket=bucket, Key=key, Body=text.encode(), ChecksumAlgorithm="SHA256")


def _split(uri: str) -> tuple[str, str]:
    match = _URL.fullmatch(uri)
    if match is None:
        raise UserError(f"{uri}: has no bucket: it must have the form s3://bucket/key")
    return match.group(1), match.group(2)


def _is_stored(store: Any, bucket: str, key: str, size: int, checksum: str) -> bool:
    """Whether the object has these bytes, by the store's checksum or, where it keeps none, by reading it back."""
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
    return bool(stored.split("-")[0] == checksum)  # S3 puts the number of parts behind


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return _checksum_of(iter(lambda: file.read(PART_BYTES), b""), path.stat().st_size)


def _checksum_of(parts: Iterator[bytes], size: int) -> str:
    """The checksum as S3 has it: sha256 of a small object, sha256 over those of its parts of one that came in parts."""
    digests = [hashlib.sha256(part).digest() for part in parts] or [hashlib.sha256(b"").digest()]
    whole = digests[0] if size < PART_BYTES else hashlib.sha256(b"".join(digests)).digest()
    return base64.b64encode(whole).decode()


def _client() -> Any:
    # A session of its own: the default one would keep the first credentials that it found.
    config = Config(retries={"mode": "standard"}, connect_timeout=_CONNECT_TIMEOUT_S, read_timeout=_READ_TIMEOUT_S)
    return boto3.session.Session().client("s3", config=config)


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turns what an object store, or the way to it, refuses into an answer."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UserError(
            f"{url}: no credentials were found ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except ClientError as error:
        code, status = error.response["Error"].get("Code"), error.response["ResponseMetadata"].get("HTTPStatusCode")
        remedy = {
            403: "check the credentials, and that they may read and list the bucket",
            404: "correct the bucket, or AWS_ENDPOINT_URL",
            301: "the bucket is in another region: set AWS_REGION",
        }.get(status or 0, "try again, or check AWS_ENDPOINT_URL")
        raise UserError(f"{url}: the object store refuses it ({code}, status {status}): {remedy}") from error
    except (BotoCoreError, boto3.exceptions.Boto3Error, ValueError) as error:
        raise UserError(
            f"{url}: the object store cannot be reached or read ({error}): check AWS_ENDPOINT_URL, the region and the network"
        ) from error
