"""Sources: rows of every kind of file are read as written, and errors have one line."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.config import Source, check_config
from posttrain.data.demo import pairs as demo
from posttrain.data.sources import count_rows, open_source, readers
from posttrain.errors import UserError

ROWS = [{"prompt": f"Wer ist {i}?", "chosen": "Grüße, 你好", "rejected": 'a "b",\nc'} for i in range(3)]


def compress(path, data):
    if path.suffix == ".gz":
        return gzip.compress(data)
    return pa.compress(data, codec="zstd", asbytes=True) if path.suffix == ".zst" else data


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compress(path, "".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".csv" in path.name:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(compress(path, text.getvalue().encode()))
    elif ".jsonl" in path.name or ".ndjson" in path.name:
        write_lines(path, rows)
    else:
        path.write_bytes(compress(path, json.dumps(rows, indent=1).encode()))
    return path


def read(path, **options):
    return list(open_source(Source(path=str(path), **options)).read())


def n_by_split(path, **options):
    records = read(path, **options)
    counts = {split: sum(record.split == split for record in records) for split in ("train", "validation", "test")}
    counted = count_rows(Source(path=str(path), **options))
    assert counted == {split: n for split, n in counts.items() if n}
    return tuple(counts.values())


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl",
        "a.jsonl.gz",
        "a.jsonl.zst",
        "a.ndjson",
        "a.json",
        "a.json.zst",
        "a.csv",
        "a.csv.gz",
        "a.csv.zst",
        "a.parquet",
    ],
)
def test_rows_of_every_file_kind_are_read_in_order(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    assert [record.values for record in read(path)] == ROWS
    assert count_rows(Source(path=str(path))) == {"train": 3}
    assert [record.values for record in read(path, limit=2)] == ROWS[:2]
    assert count_rows(Source(path=str(path), limit=2)) == {"train": 2}
    assert [record.values for record in read(f"{path}:2")] == ROWS[:2]
    assert count_rows(Source(path=f"{path}:2")) == {"train": 2}


def test_json_suffix_accepts_json_lines(tmp_path):
    path = tmp_path / "a.json"
    write_lines(path, ROWS)
    assert [record.values for record in read(path)] == ROWS


def test_byte_order_mark_carriage_returns_and_blank_lines_are_ignored(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row).encode() for row in ROWS) + b"\r\n \r\n")
    assert [record.values for record in read(path)] == ROWS
    assert count_rows(Source(path=str(path))) == {"train": 3}
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,chosen\r\n\r\na,b\r\n")
    assert [record.values for record in read(path)] == [{"prompt": "a", "chosen": "b"}]


def test_unreadable_rows_have_their_location(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnot json\n[1]\n' + "[" * 100_000 + "\n")
    assert [(record.where, record.values) for record in read(path)] == [
        (f"{path}:1", {"a": 1}),
        (f"{path}:2", None),
        (f"{path}:3", None),
        (f"{path}:4", None),
    ]
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n1\n1,2,3\n"x"y,2\n"two\nlines",2\nNaN,\n"open\n')
    assert [(record.where.rpartition(":")[2], record.values) for record in read(path)] == [
        ("2", {"a": "1", "b": "2"}),
        ("3", None),
        ("4", None),
        ("5", None),
        ("6", {"a": "two\nlines", "b": "2"}),
        ("8", {"a": None, "b": ""}),
        ("9", None),
    ]


def test_file_names_determine_the_split(tmp_path):
    for name, n in {
        "train-00000-of-00002.jsonl": 1,
        "train-00001-of-00002.jsonl": 2,
        "sub/test_prefs.jsonl": 4,
        "val.jsonl": 8,
        "testimonials.jsonl": 16,
        "sub/more.jsonl": 32,
    }.items():
        write_lines(tmp_path / name, ROWS[:1] * n)
    write_lines(tmp_path / ".cache" / "train.jsonl", ROWS)
    (tmp_path / "README.md").write_text("no rows")
    assert n_by_split(tmp_path) == (51, 8, 4)
    assert n_by_split(tmp_path, limit=3) == (3, 3, 3)
    assert n_by_split(tmp_path, test_split=None) == (51, 8, 0)
    assert n_by_split(f"{tmp_path}/**/t*.jsonl") == (19, 0, 4)
    assert n_by_split(tmp_path, train_split="test_prefs", test_split="val") == (4, 0, 8)


def test_single_test_file_is_used_for_training_only_if_configured(tmp_path):
    path = write_lines(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(UserError, match=r"no training file, only test\.jsonl: set `train_split`"):
        open_source(Source(path=str(path)))
    assert n_by_split(path, train_split="test") == (3, 0, 0)


def test_labels_of_rows_do_not_depend_on_the_machine(tmp_path, monkeypatch):
    write_lines(tmp_path / "hh" / "harmless" / "train.jsonl.gz", ROWS[:1])
    write_lines(tmp_path / "hh" / "pairs.jsonl", ROWS[:1])
    monkeypatch.chdir(tmp_path)
    for path in ("hh", f"{tmp_path}/hh", "../" + tmp_path.name + "/hh/**/*"):
        assert {record.source for record in read(path)} == {"hh/harmless", "hh/pairs"}
    monkeypatch.chdir(tmp_path / "hh")
    assert [record.source for record in read("pairs.jsonl")] == ["hh/pairs"]


@pytest.mark.parametrize("n_read", [0, 2])
@pytest.mark.parametrize("change", ["rewritten", "grown", "replaced", "deleted"])
def test_file_that_changes_while_it_is_read_is_refused(tmp_path, n_read, change):
    """Otherwise the recorded digest would not match the rows used for training."""
    path = write_lines(tmp_path / "pairs.jsonl", ROWS)
    os.utime(path, (0, 0))  # a file system's clock may stand still for some milliseconds
    rows = open_source(Source(path=str(path))).read()
    first = [next(rows) for _ in range(n_read)]
    if change == "replaced":
        write_lines(tmp_path / "new", ROWS).rename(path)
    elif change == "deleted":
        path.unlink()
    else:
        write_lines(path, ROWS if change == "rewritten" else ROWS * 2)
    with pytest.raises(UserError, match=r"pairs\.jsonl: (changed while it was read|cannot be read)"):
        first += rows


def test_digest_depends_on_the_bytes_only(tmp_path):
    first, second = (write_lines(tmp_path / name, ROWS) for name in ("a.jsonl", "b.jsonl"))
    other = write_lines(tmp_path / "c.jsonl", ROWS[:2])
    digests = [open_source(Source(path=str(path))).digest for path in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]


def test_truncated_file_is_named_in_the_error(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(f"{i}\n" for i in range(9999)).encode())[:-500])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be read completely .*: copy or download"):
        read(path)
    path.write_text("not gzip")
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be read"):
        read(path)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compress(path, "".join(f"{i}\n" for i in range(9999)).encode())[:-500])
    with pytest.raises(UserError, match=r"a\.jsonl\.zst: cannot be read completely .*: copy or download"):
        read(path)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"a\.parquet: is not a valid Parquet file"):
        read(path)


def test_repeated_column_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,chosen\n1,2,3\n")
    with pytest.raises(UserError, match=r"the header has 'chosen' more than once: rename or remove one"):
        read(path)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(UserError, match="two columns have the same name"):
        read(path)


def test_hub_settings_are_refused_for_other_sources(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    for name in ("revision", "subset", "data_dir"):
        for where in (str(path), "demo"):
            with pytest.raises(UserError, match=f"{name} 'x' applies only to datasets on the Hub, .*: remove {name}"):
                open_source(Source(path=where, **{name: "x"}))


HOSTILE_LINES = st.lists(
    st.sampled_from(
        [b'{"a": 1}', b'{"a": NaN}', b"{}", b"[1]", b"nonsense", b"", b" ", b"\xff\xfe", b'{"a": "\xed\xa0\xbd"}', b"a;b;c",
         b'{"a": "\\ud83d"}', '{"a": "😀"}'.encode(), b'"' + b"x" * 70_000 + b'"', b"[" * 5000, b"1" * 5000, b'a,b\n"x', b"\x00"]
    )
    | st.binary(max_size=40).filter(lambda line: b"\n" not in line and b"\r" not in line),
    max_size=8,
)  # fmt: skip


@pytest.mark.parametrize("content", [b"\x00\n", b"\x00\n\x00\n", b'\x00{"a": 1}\n', b'a\x00\n{"a": 1}\n'])
def test_a_null_byte_makes_no_utf_16_of_a_file(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert len(read(path)) == content.count(b"\n")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    HOSTILE_LINES,
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.csv.zst", "a.parquet"]),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    st.booleans(),
)
def test_any_file_gives_all_rows_or_a_clear_error(tmp_path, lines, name, end, is_cut):
    """Each non-blank line gives a row or an unreadable row, or the file gives a one-line error."""
    path = tmp_path / name
    content = compress(path, end.join(lines) + end)
    path.write_bytes(content[: len(content) // 2] if is_cut else content)
    answer = None
    try:
        records = read(path)
    except UserError as error:
        answer = str(error)
    if answer is not None:
        assert "\n" not in answer
        assert name in answer
        return
    assert count_rows(Source(path=str(path))) == {"train": len(records)}
    begins_as_utf_16 = b"\0" in content[:4] or content.startswith((b"\xff\xfe", b"\xfe\xff"))
    if name == "a.jsonl" and not is_cut and not begins_as_utf_16:
        text = (end.join(lines) + end).decode("utf-8-sig", errors="surrogateescape")
        assert len(records) == sum(not line.isspace() for line in io.StringIO(text, newline=""))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.jsonl", "no data file found"),
        ("*.jsonl", "no data file found"),
        (".", "no data file found"),
        ("missing", r"nor a Hub id \(organisation/name\)"),
        ("gs://bucket/a.jsonl", "nor a Hub id"),
        ("hh-rlhf:0", "nor a Hub id"),
        ("notes.txt", r"must end in \.jsonl"),
    ],
)
def test_missing_path_gives_a_clear_error(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    if path == "notes.txt":
        (tmp_path / path).write_text("x")
    with pytest.raises(UserError, match=words):
        open_source(Source(path=path))


@pytest.fixture
def hub(monkeypatch):
    """Replace the Hub by one with a single dataset, and return the list of requests."""
    import datasets
    import huggingface_hub

    asked = []
    splits = {name: datasets.Dataset.from_list(ROWS[:n]) for name, n in {"train": 3, "test": 1, "other": 2}.items()}

    class Api:
        def dataset_info(self, path, revision):
            if revision == "gone":
                raise OfflineModeIsEnabled("offline")
            return huggingface_hub.hf_api.DatasetInfo(id=path, sha="c0ffee", tags=[])

    def load_dataset(path, name, *, data_dir, revision):
        asked.append((path, name, data_dir, revision))
        if revision == "gone":
            raise ConnectionError("Couldn't reach the Hub\nand more")
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_dataset_is_read_at_the_recorded_commit(hub):
    opened = open_source(Source(path="org/pairs", subset="en", data_dir="harmless", revision="main"))
    assert hub == [("org/pairs", "en", "harmless", "c0ffee")]
    assert (opened.revision, opened.splits) == ("c0ffee", frozenset({"train", "test"}))
    records = list(opened.read())
    assert [record.split for record in records] == ["train"] * 3 + ["test"]
    assert records[0] == ("org/pairs/en/harmless", "train", "org/pairs/en/harmless:train:1", ROWS[0])
    assert count_rows(Source(path="org/pairs")) is None


@pytest.mark.parametrize(
    ("path", "dataset_id"),
    [
        ("hh-rlhf:2", "Anthropic/hh-rlhf"),
        ("oasst1", "OpenAssistant/oasst1"),
        ("shp", "stanfordnlp/SHP"),
        ("ultrafeedback", "HuggingFaceH4/ultrafeedback_binarized"),
    ],
)
def test_short_names_of_well_known_datasets(hub, path, dataset_id):
    opened = open_source(Source(path=path))
    assert hub == [(dataset_id, None, None, "c0ffee")]
    records = list(opened.read())
    assert [record.split for record in records] == ["train"] * (2 if ":" in path else 3) + ["test"]
    assert {record.source for record in records} == {dataset_id}


def test_folder_takes_precedence_over_a_short_name(hub, tmp_path, monkeypatch):
    write_lines(tmp_path / "shp" / "train.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert len(read("shp")) == 3
    assert hub == []


def test_ultrafeedback_uses_its_own_split_names(hub, monkeypatch):
    import datasets

    splits = {
        name: datasets.Dataset.from_list(ROWS[:n])
        for name, n in {"train_sft": 3, "train_prefs": 2, "test_prefs": 1}.items()
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(splits))
    assert [record.split for record in read("ultrafeedback")] == ["train", "train", "test"]
    assert [record.split for record in read("ultrafeedback", train_split="train_sft")] == ["train"] * 3


def test_undecodable_hub_row_gives_a_one_line_error(hub, monkeypatch):
    import datasets

    binary = pa.table({"prompt": pa.array([b"good", b"\xff"])})
    broken = pa.Table.from_arrays([binary["prompt"].chunk(0).view(pa.string())], names=["prompt"])
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"train": datasets.Dataset(broken)})
    )
    with pytest.raises(UserError, match=r"org/pairs: cannot be read after row \d of train .*hf cache"):
        read("org/pairs")


def test_unreachable_hub_gives_a_one_line_error(hub):
    with pytest.raises(UserError) as error:
        open_source(Source(path="org/pairs", revision="gone"))
    assert "org/pairs" in str(error.value)
    assert "Couldn't reach the Hub. Check the id" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_hub_split_error_lists_the_splits(hub):
    with pytest.raises(UserError, match=r"no split 'train_prefs', only train, test, other: .* `train_split`"):
        open_source(Source(path="org/pairs", train_split="train_prefs"))


def test_demo_has_the_declared_number_of_rows():
    assert count_rows(Source(path="demo")) == {"train": len(read("demo"))} == {"train": demo.N_ROWS}
    assert len(read("demo", limit=7)) == 7


def test_counting_and_opening_files_import_no_slow_packages():
    program = (
        "import sys, posttrain.data.sources, posttrain.data.formats; "
        "print(sys.modules.keys() & {'torch', 'transformers', 'datasets', 'pyarrow', 'huggingface_hub'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "names",
    [("Train.jsonl", "Test.jsonl"), ("train/0000.jsonl", "test/0000.jsonl"), ("pairs_train.jsonl", "pairs-test.jsonl")],
    ids=["capitals", "folders", "suffixes"],
)
def test_test_split_of_any_name_is_never_in_training(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert count_rows(Source(path=str(tmp_path))) == {"train": 1, "test": 1}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"sources": [{"path": "x", "columns": {"promt": "a"}}]},
            "'promt' is not a column of any layout (did you mean 'prompt'?)",
        ),
        (
            {"sources": [{"path": "x", "columns": {"prompt": "a", "chosen": "a"}}]},
            "maps two of our columns to 'a'",
        ),
        ({"sources": [{"path": "x:5", "limit": 3}]}, "path x:5 ends in a number of rows and limit is 3: remove one"),
        (
            {"sources": ["hh-rlhf:5", {"path": "shp", "weight": 2}]},
            "hh-rlhf:5 has no weight, but other sources have one",
        ),
        ({"sources": [{"path": "shp", "weight": 0}]}, "data.sources.0.weight: 0 is not allowed"),
        ({"sources": [{"path": "shp", "min_score_ratio": 0.5}]}, "data.sources.0.min_score_ratio: 0.5 is not allowed"),
    ],
)
def test_contradictory_source_settings_are_refused(data, words):
    with pytest.raises(UserError) as error:
        check_config({"data": data, "model": {"base": "x"}})
    assert words in str(error.value)


def test_source_can_be_a_string_with_a_number_of_rows():
    first, second = check_config(
        {"data": {"sources": ["hh-rlhf:50000", {"path": "s3://b/k:e:7"}]}, "model": {"base": "x"}}
    ).data.sources
    assert (first.location, first.row_limit, first.limit) == ("hh-rlhf", 50_000, None)
    assert (second.location, second.row_limit) == ("s3://b/k:e", 7)
    assert Source.model_validate(first.model_dump()) == first  # ZenML checks dumps again


@pytest.mark.parametrize("suffix", ["jsonl.gz", "csv.gz", "json"])
def test_an_endless_line_of_a_small_file_is_refused(tmp_path, monkeypatch, suffix):
    """1 MB of zeros compresses to 1 kB; a line of 4 GiB would fill the memory."""
    monkeypatch.setattr(readers, "LINE_AT_MOST", 2**20)
    monkeypatch.setattr(readers, "ARRAY_AT_MOST", 2**20)
    path = tmp_path / f"bomb.{suffix}"
    start = b"[" if suffix == "json" else b'{"prompt": "a"}\n'
    content = start + b"0" * 2**21
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(UserError, match=r"bomb\.\S+: (the line )?has more than"):
        list(readers.read_rows(path, path.name))


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json_is_an_unreadable_row_and_no_crash(tmp_path, opening):
    path = tmp_path / "deep.jsonl"
    path.write_text(opening * 100_000 + "\n" + '{"prompt": "a"}\n')
    assert [row for _, row in readers.read_rows(path, "deep.jsonl")] == [None, {"prompt": "a"}]
