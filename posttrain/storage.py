"""Objects in S3 and in stores that speak as it does. The only importer of boto3.

Credentials, region and endpoint are found as boto3 finds them: the environment (`AWS_ENDPOINT_URL_S3` for MinIO and its like), the
shared configuration files, the machine's role.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from posttrain.errors import UserError

PART_BYTES = 64 * 2**20
"""Of an upload in parts: 10,000 of them, which is S3's limit, are 625 GiB."""


def upload_file(path: Path, uri: str) -> None:
    """Copies a file to `s3://bucket/key`, in parts if it is large; nothing is sent where the object is the same already.

    Every part is sent with its sha256, which the store checks, and what the store has at the end is compared once more.

    Raises:
        UserError: the store refuses, cannot be reached, or has other bytes at the end.
    """
    bucket, key = split_uri(uri)
    size, checksum = path.stat().st_size, _checksum(path)
    with _errors(uri):
        store = boto3.client("s3")
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
    bucket, key = split_uri(uri)
    with _errors(uri):
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=text.encode(), ChecksumAlgorithm="SHA256")


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`.

    Raises:
        UserError: it names no bucket.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise UserError(f"{uri}: names no bucket: write s3://bucket/folder")
    return bucket, key.strip("/")


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


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError, S3UploadFailedError) as error:
        raise UserError(
            f"{uri}: cannot be written: {error}: check bucket, credentials and AWS_ENDPOINT_URL_S3; what was there before is "
            "unchanged"
        ) from error
