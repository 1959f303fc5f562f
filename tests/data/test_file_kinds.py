"""Files of other programs: Arrow folders, their descriptions, other encodings and other separators."""

import json

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from support.data_files import write_rows

from posttrain.config import Source
from posttrain.data.sources import count_rows, open_source
from posttrain.errors import UserError

ROWS = [{"prompt": f"Frage {i}: für wen?", "chosen": f"ja; {i}, schön", "rejected": f"nein {i}"} for i in range(3)]


def values(path, **settings):
    source = Source(path=str(path), **settings)
    found = [record.values for record in open_source(source).read()]
    counts = count_rows(source)
    assert counts is not None
    assert sum(counts.values()) == len(found)
    return found


def csv(separator, newline="\n"):
    lines = [list(ROWS[0]), *([f'"{value}"' for value in row.values()] for row in ROWS)]
    return newline.join(separator.join(line) for line in lines) + newline


def test_folders_of_save_to_disk_are_read_without_their_descriptions(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    assert {file.name for file in (tmp_path / "saved").iterdir()} >= {"dataset_info.json", "state.json"}
    assert values(tmp_path / "saved") == ROWS
    assert {record.source for record in open_source(Source(path=str(tmp_path / "saved"))).read()} == {
        f"{tmp_path.name}/saved"
    }


def test_splits_of_save_to_disk_keep_their_roles(tmp_path):
    DatasetDict(
        train=Dataset.from_list(ROWS), validation=Dataset.from_list(ROWS[:1]), test=Dataset.from_list(ROWS[1:])
    ).save_to_disk(tmp_path / "saved")
    records = list(open_source(Source(path=str(tmp_path / "saved"))).read())
    assert [record.split for record in records] == [*["train"] * 3, "validation", *["test"] * 2]
    assert {record.source for record in records} == {f"{tmp_path.name}/saved"}


def test_arrow_files_and_streams_are_read(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert values(tmp_path / "file.arrow") == ROWS
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1 no")
    with pytest.raises(UserError, match=r"broken\.arrow: cannot be read after row 0"):
        list(open_source(Source(path=str(tmp_path / "broken.arrow"))).read())


def test_files_that_describe_data_are_skipped(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", ROWS)
    for name in ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}))
    (tmp_path / "cache-1a2b.arrow").write_bytes(b"x")
    assert values(tmp_path) == values(tmp_path / "*.json*") == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_files_are_recognised(tmp_path, encoding):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "pairs.jsonl").write_bytes(lines.encode(encoding))
    (tmp_path / "pairs.csv").write_bytes(csv(",", "\r\n").encode(encoding))
    (tmp_path / "pairs.json").write_bytes(json.dumps(ROWS, ensure_ascii=False).encode(encoding))
    for name in ("pairs.jsonl", "pairs.csv", "pairs.json"):
        assert values(tmp_path / name) == ROWS


def test_other_encodings_are_read_with_the_setting(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(csv(";").encode("cp1252"))
    assert values(tmp_path / "pairs.csv", encoding="cp1252") == ROWS
    assert values(tmp_path / "pairs.csv")[0]["prompt"] == "Frage 0: f\udcfcr wen?"  # which `broken_encoding` counts
    with pytest.raises(ValueError, match="'klingon' is not an encoding"):
        Source(path="x", encoding="klingon")
    with pytest.raises(ValueError, match="'base64' is not an encoding"):
        Source(path="x", encoding="base64")


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tsv", "\t")])
def test_separators_are_recognised_from_the_header(tmp_path, name, separator):
    (tmp_path / name).write_text(csv(separator), encoding="utf-8")
    assert values(tmp_path / name) == ROWS


def test_a_comma_in_the_header_decides(tmp_path):
    (tmp_path / "a.csv").write_text('"a;b",chosen\nx;y,z\n')
    assert values(tmp_path / "a.csv") == [{"a;b": "x;y", "chosen": "z"}]
