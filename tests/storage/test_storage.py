"""S3: objects are read completely and in the recorded version, from a real local server."""

import gzip
import http.server
import json
import os
import threading
import uuid

import boto3
import pytest

from posttrain.config import DataSection, Source
from posttrain.data.loader import load_preferences
from posttrain.data.sources import count_rows, open_source
from posttrain.errors import UserError
from posttrain.storage import s3 as storage
from posttrain.storage.cache import cache_dir


def lines(n, start=0):
    rows = [{"prompt": f"question {i}", "chosen": "yes", "rejected": "no"} for i in range(start, start + n)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def s3(endpoint, tmp_path, monkeypatch):
    """Return a client of the server, configured through the environment as by users, with an empty cache."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ.get("AWS_ACCESS_KEY_ID", "test"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ.get("AWS_SECRET_ACCESS_KEY", "test"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return boto3.client("s3")


@pytest.fixture
def bucket(s3):
    """Return the name of an empty bucket."""
    name = f"posttrain-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


def put(s3, bucket, key, body):
    return s3.put_object(Bucket=bucket, Key=key, Body=body)


def n_by_split(url, **settings):
    records = list(open_source(Source(path=url, **settings)).read())
    return {split: sum(record.split == split for record in records) for split in {record.split for record in records}}


def test_object_prefix_and_glob_give_their_rows(s3, bucket):
    put(s3, bucket, "hh/harmless/train.jsonl.gz", gzip.compress(lines(3)))
    put(s3, bucket, "hh/harmless/test.jsonl", lines(2))
    put(s3, bucket, "hh/helpful/deep/train.jsonl", lines(4))
    put(s3, bucket, "hh/.cache/train.jsonl", lines(50))
    put(s3, bucket, "hh/README.md", b"no rows")
    put(s3, bucket, "hhh/train.jsonl", lines(50))
    assert n_by_split(f"s3://{bucket}/hh/harmless/train.jsonl.gz") == {"train": 3}
    for prefix in ("hh", "hh/"):
        assert n_by_split(f"s3://{bucket}/{prefix}") == {"train": 7, "test": 2}
    assert n_by_split(f"s3://{bucket}/hh/*/t*.jsonl*") == {"train": 3, "test": 2}
    assert n_by_split(f"s3://{bucket}/hh/**/train.*") == {"train": 7}
    assert n_by_split(f"s3://{bucket}/hh:2") == {"train": 2, "test": 2}
    records = list(open_source(Source(path=f"s3://{bucket}/hh")).read())
    assert {record.source for record in records} == {"hh/harmless", "helpful/deep"}
    assert records[0].where == f"s3://{bucket}/hh/harmless/train.jsonl.gz:1"
    assert records[0].values == {"prompt": "question 0", "chosen": "yes", "rejected": "no"}
    assert count_rows(Source(path=f"s3://{bucket}/hh")) is None


def test_file_gives_the_same_source_in_s3_and_locally(s3, bucket, tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(lines(5))
    put(s3, bucket, "pairs.jsonl", lines(5))
    here = open_source(Source(path=str(tmp_path / "pairs.jsonl")))
    there = open_source(Source(path=f"s3://{bucket}/pairs.jsonl"))
    assert here.digest == there.digest
    assert [record.values for record in here.read()] == [record.values for record in there.read()]


def cached(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*") if path.is_file()}


def test_unchanged_object_is_downloaded_once(s3, bucket, tmp_path):
    url = f"s3://{bucket}/pairs.jsonl"
    etag = put(s3, bucket, "pairs.jsonl", lines(3))["ETag"].strip('"')
    opened = open_source(Source(path=url))
    assert opened.objects == {url: etag}
    before = cached(tmp_path)
    assert open_source(Source(path=url)).digest == opened.digest
    assert cached(tmp_path) == before
    assert len(before) == 1


def test_changed_object_is_detected_by_its_etag(s3, bucket):
    url = f"s3://{bucket}/pairs.jsonl"
    put(s3, bucket, "pairs.jsonl", lines(3))
    first = open_source(Source(path=url))
    put(s3, bucket, "pairs.jsonl", lines(3, start=7))
    second = open_source(Source(path=url))
    assert first.objects[url] != second.objects[url]
    assert first.digest != second.digest
    assert [record.values["prompt"] for record in second.read()] == ["question 7", "question 8", "question 9"]
    assert next(first.read()).values["prompt"] == "question 0"  # what was opened stays what it was


def test_versioned_bucket_gives_the_version_id(s3, bucket):
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    url = f"s3://{bucket}/pairs.jsonl"
    versions = [put(s3, bucket, "pairs.jsonl", lines(3))["VersionId"] for _ in range(2)]
    assert versions[0] != versions[1]
    assert open_source(Source(path=url)).objects == {url: versions[1]}


def test_report_lists_the_objects_that_were_read(s3, bucket):
    etag = put(s3, bucket, "pairs.jsonl", lines(200))["ETag"].strip('"')
    url = f"s3://{bucket}/pairs.jsonl"
    _, report = load_preferences(DataSection(sources=[Source(path=url)]))
    assert (report.n_rows, report.n_read, report.n_kept) == (200, 200, 200)
    assert report.sources[0].objects == {url: etag}


def test_object_overwritten_while_it_is_read_is_refused(s3, bucket, tmp_path):
    put(s3, bucket, "pairs.jsonl", lines(3))
    store = storage.ObjectStore()
    (found,), _ = store.find(f"s3://{bucket}/pairs.jsonl", bool)
    put(s3, bucket, "pairs.jsonl", lines(3, start=7))
    with pytest.raises(UserError, match="changed while it was read: run again"):
        store.fetch(found)
    assert cached(tmp_path) == {}


def test_keys_can_have_any_characters_of_paths(s3, bucket):
    key = "a b/ü+%20=&?/pairs.jsonl"
    put(s3, bucket, key, lines(3))
    assert n_by_split(f"s3://{bucket}/a b/") == {"train": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://", "has no bucket"),
        ("s3://{bucket}/missing.jsonl", "does not exist"),
        ("s3://{bucket}/x*.jsonl", "does not exist"),
        ("s3://{bucket}/notes.txt", r"notes\.txt: must end in \.jsonl"),
        ("s3://{bucket}/n*", "none of its 1 objects has a supported format"),
        ("s3://{bucket}-missing/a.jsonl", "does not exist|refused the request"),
        ("s3://{bucket}-missing/", r"refused the request \(NoSuchBucket, status 404\): correct the bucket"),
        ("s3://{bucket}/cut.jsonl.gz", r"cut\.jsonl\.gz: cannot be read completely"),
        ("s3://{bucket}/test.jsonl", "no training file, only test.jsonl"),
    ],
)
def test_unreadable_objects_give_a_one_line_error(s3, bucket, path, words):
    put(s3, bucket, "notes.txt", b"x")
    put(s3, bucket, "cut.jsonl.gz", gzip.compress(lines(999))[:-200])
    put(s3, bucket, "test.jsonl", lines(3))
    with pytest.raises(UserError, match=words) as error:
        list(open_source(Source(path=path.format(bucket=bucket))).read())
    assert "\n" not in str(error.value)


def test_unreachable_store_gives_a_one_line_error(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be reached .*: check AWS_ENDPOINT_URL"):
        open_source(Source(path="s3://bucket/a.jsonl"))


def test_missing_credentials_are_named(s3, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"no credentials were found .*: set AWS_ACCESS_KEY_ID"):
        open_source(Source(path="s3://bucket/a.jsonl"))


def test_hub_settings_on_an_object_are_refused(s3):
    with pytest.raises(UserError, match="revision 'main' applies only to datasets on the Hub"):
        open_source(Source(path="s3://bucket/a.jsonl", revision="main"))


class HalfAnswers(http.server.BaseHTTPRequestHandler):
    """Return the address of a store that announces 1000 bytes and closes the connection after ten."""

    def do_HEAD(self):
        self.send_response(200)
        for name, value in {
            "ETag": '"e"',
            "Content-Length": "1000",
            "Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT",
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(b"0123456789")

    def log_message(self, *_):
        """Silence."""


def test_interrupted_download_leaves_no_file(s3, monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HalfAnswers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(UserError, match=r"s3://bucket/a\.jsonl: the object store cannot be reached"):
            open_source(Source(path="s3://bucket/a.jsonl"))
    finally:
        server.shutdown()
        server.server_close()
    assert cached(tmp_path) == {}


def test_unwritable_cache_gives_a_one_line_error(s3, bucket, monkeypatch, tmp_path):
    put(s3, bucket, "a.jsonl", lines(3))
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file: cannot be created \(File exists\): set POSTTRAIN_CACHE to a folder"):
        open_source(Source(path=f"s3://{bucket}/a.jsonl"))


def test_empty_cache_variable_gives_a_one_line_error(monkeypatch):
    """It would mean the current folder."""
    monkeypatch.setenv("POSTTRAIN_CACHE", " ")
    with pytest.raises(UserError, match="POSTTRAIN_CACHE is empty: set it to a folder"):
        cache_dir()
