"""Rows that a person asked to remove are neither trained nor evaluated on, counted, and not shown."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.data_files import THINGS, write_instructions, write_pairs, write_rows

from posttrain.config import DataSection, Source
from posttrain.data.exclusion import Exclusion
from posttrain.data.loader import load_instructions, load_pairs, load_preferences
from posttrain.data.report import DataReport
from posttrain.errors import UserError
from posttrain.reporting.pages.data_page import advice


def section(folder: Path, **data: Any) -> DataSection:
    return DataSection(sources=[Source(path=str(write_pairs(folder / "pairs.jsonl")))], test_size=0.3, **data)


def kept_prompts(data: DataSection) -> tuple[set[str], DataReport]:
    preferences, report = load_preferences(data)
    return {row["prompt"][-1]["content"] for rows in preferences.splits().values() for row in rows}, report


def every_prompt() -> set[str]:
    return {f"My {THINGS[i % 6]} number {i} is broken." for i in range(60)}


def test_prompts_and_ids_of_a_text_file_are_dropped_and_counted(tmp_path: Path) -> None:
    preferences, _ = load_preferences(section(tmp_path))
    row = preferences.train[9]
    file = tmp_path / "erased.txt"
    file.write_text(f"{row['id']}\n\nmy  ROUTER number 1 is broken.\nnobody asked this\n")
    prompts, report = kept_prompts(section(tmp_path, exclude=str(file)))
    assert prompts == every_prompt() - {row["prompt"][0]["content"], "My router number 1 is broken."}
    assert report.dropped == {"excluded": 2}
    assert report.unmatched_exclusions == ["line 4"]
    assert "data.exclude: line 4 match no usable row of these sources." in advice(report)
    assert "router" not in json.dumps(report.examples["excluded"])
    assert load_preferences(section(tmp_path))[1].dropped == {}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_data_file_with_a_column_names_the_rows(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"erased.{suffix}"
    prompts = ["My lamp number 2 is broken.", "My lamp number 8 is broken."]
    if suffix == "parquet":
        pq.write_table(pa.table({"prompt": prompts, "asked_by": ["a", "b"]}), file)
    elif suffix == "csv":
        file.write_text("\n".join(["prompt", *prompts]))
    else:
        write_rows(file, [{"prompt": prompts[0]}, {"prompt": [{"role": "user", "content": prompts[1]}]}])
    found, report = kept_prompts(section(tmp_path, exclude=str(file)))
    assert found == every_prompt() - set(prompts)
    assert (report.dropped, report.unmatched_exclusions) == ({"excluded": 2}, [])


def test_ids_of_the_source_itself_are_known(tmp_path: Path) -> None:
    rows = [{"id": 1000 + i, "prompt": f"question {i}", "chosen": "yes", "rejected": "no"} for i in range(60)]
    file = tmp_path / "erased.txt"
    file.write_text("1007\n")
    data = DataSection(sources=[Source(path=str(write_rows(tmp_path / "own.jsonl", rows)))], test_size=0.3)
    found, _ = kept_prompts(data.model_copy(update={"exclude": str(file)}))
    assert found == {f"question {i}" for i in range(60)} - {"question 7"}


def test_instructions_and_sets_are_without_them_too(tmp_path: Path) -> None:
    file = tmp_path / "erased.txt"
    file.write_text("Name thing 3.\nMy printer number 0 is broken.\n")
    data = section(tmp_path, exclude=str(file))
    preferences, _ = load_preferences(data)
    _, report = load_instructions(Source(path=str(write_instructions(tmp_path / "i.jsonl"))), preferences, data)
    assert (report.dropped, report.unmatched_exclusions) == ({"excluded": 1}, ["line 2"])
    pairs, report = load_pairs(Source(path=str(tmp_path / "pairs.jsonl")), set(), data)
    assert (len(pairs), report.dropped, report.unmatched_exclusions) == (59, {"excluded": 1}, ["line 1"])


def test_a_message_of_a_longer_conversation_is_found(tmp_path: Path) -> None:
    turns = [("user", "My name is Ann."), ("assistant", "Hello."), ("user", "Bye.")]
    row = {"id": "x", "prompt": [{"role": role, "content": text} for role, text in turns]}
    other = {"id": "x", "prompt": [{"role": "user", "content": "Say hello."}, *row["prompt"][1:]]}
    (tmp_path / "erased.txt").write_text("my name is ann.\nHello.\n")
    exclusion = Exclusion(str(tmp_path / "erased.txt"))
    assert (exclusion.covers(row), exclusion.covers(other)) == (True, False)
    assert exclusion.unmatched() == ["line 2"], "an answer is no prompt"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file: correct data.exclude"),
        ("empty.txt", "\n \n", "names no rows: write one id or prompt per line"),
        ("wrong.jsonl", '{"text": "x"}\n', r"wrong\.jsonl:1: has neither an id nor a prompt \(it has text\)"),
        ("torn.jsonl", "{\n", r"torn\.jsonl:1: has neither an id nor a prompt \(it has nothing that can be parsed\)"),
        ("kind.jsonl", '{"prompt": 3}\n', r"kind\.jsonl:1: the prompt is neither text nor messages"),
    ],
)
def test_a_file_that_names_nothing_is_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        Exclusion(str(tmp_path / name))
