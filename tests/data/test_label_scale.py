"""The meaning of labels is decided by all labels of a source, or the run stops."""

import pytest
from support.data_files import write_rows

from posttrain.config import DataSection, Source
from posttrain.data.formats.label_scale import Labels
from posttrain.data.loader import load_preferences
from posttrain.errors import UserError

COLUMNS = ("label", "response_1", "response_2")


def meanings(values, columns=None, labels=None):
    source = Source(path="x", columns=columns or {}, labels=labels or {})
    judged = Labels(source, COLUMNS, values)
    return [{"first": 1, "second": 2, "tie": 0, None: None}[judged.read(value)] for value in values]


ZERO_BASED = {"response_1": "response_0", "response_2": "response_1"}
LETTERS = {"response_1": "answer_a", "response_2": "answer_b"}


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [
        ([1, 2, 2], {}, [1, 2, 2]),
        (["1", "2.0", 2.0], {}, [1, 2, 2]),
        ([1, 2, "tie", None], {}, [1, 2, 0, None]),
        (["a", "B", "Tie"], {}, [1, 2, 0]),
        (["model_a", "model_b", "tie (bothbad)", "both_bad"], {}, [1, 2, 0, 0]),
        (["response_2", "response_1"], {}, [2, 1]),
        ([0, 1, 1], ZERO_BASED, [1, 2, 2]),
        ([1, 1], ZERO_BASED, [2, 2]),
        (["response_1", "response_0"], ZERO_BASED, [2, 1]),
        (["a", "b"], LETTERS, [1, 2]),
        (["answer_b"], LETTERS, [2]),
        ([1, 2], LETTERS, [1, 2]),
        (["a", "b"], {"response_1": "answer_b", "response_2": "answer_a"}, [2, 1]),
        (["left", "right"], {}, [1, 2]),
    ],
)
def test_labels_have_one_documented_meaning(values, columns, expected):
    assert meanings(values, columns) == expected


@pytest.mark.parametrize(
    ("values", "columns"),
    [
        ([0, 1], {}),
        ([0, 1], LETTERS),
        ([1, 1], LETTERS),  # 1 of 0 and 1, or of 1 and 2
        ([1, 2], ZERO_BASED),
        ([0, 1, 2], {}),
        ([-1, 1], {}),
        ([-1, 0, 1], {}),
        ([-3, 2, 0.5], {}),
        ([True, False], {}),
        (["gpt-4", "llama"], {}),
        (["a", 1], {}),
        (["model_a", "model_b"], {"response_1": "answer_b", "response_2": "answer_a"}),
    ],
)
def test_labels_of_other_scales_stop_the_run(values, columns):
    with pytest.raises(UserError) as error:
        meanings(values, columns)
    text = str(error.value)
    assert "the label `label` has the values" in text
    assert all(str(value).lower() in text for value in values)
    assert "set `labels` of the source" in text


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        ([0, 1, "1"], {0: "first", 1: "second"}, [1, 2, 2]),
        ([1, 0], {0: "second", 1: "first"}, [1, 2]),
        ([True, False, "true"], {True: "first", False: "second"}, [1, 2, 1]),
        ([-2, 0.5, 0], {"negative": "first", "positive": "second", "zero": "tie"}, [1, 2, 0]),
        (["GPT-4", "llama", "x"], {"gpt-4": "first", "llama": "second"}, [1, 2, None]),
    ],
)
def test_the_setting_decides(values, labels, expected):
    assert meanings(values, labels=labels) == expected


def test_all_labels_are_judged_before_any_row_is_used(tmp_path):
    """The first 99 rows look like 1 and 2; one 0 at the end makes the scale unclear."""
    rows = [
        {"prompt": f"q {i}", "response_1": f"a {i}", "response_2": f"b {i}", "label": 1 + i % 2 if i < 99 else 0}
        for i in range(100)
    ]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError, match=r"1 \(50 rows\), 2 \(49 rows\), 0 \(1 rows\)"):
        load_preferences(DataSection(sources=[Source(path=str(file))], test_size=0.2))
    labels = {1: "first", 2: "second", 0: "tie"}
    _, report = load_preferences(DataSection(sources=[Source(path=str(file), labels=labels)], test_size=0.2))
    assert report.dropped == {"tie": 1}


def test_zero_based_ids_choose_the_response_of_that_number(tmp_path):
    rows = [
        {"prompt": f"q {i}", "response_0": "no" if i % 3 else "yes", "response_1": "yes" if i % 3 else "no"}
        | {"better_response_id": int(i % 3 > 0)}
        for i in range(60)
    ]
    file = str(write_rows(tmp_path / "pairs.jsonl", rows))
    mapping = {"response_1": "response_0", "response_2": "response_1", "label": "better_response_id"}
    for columns in ({}, mapping):
        preferences, report = load_preferences(
            DataSection(sources=[Source(path=file, columns=columns)], test_size=0.2, checks={"near_duplicate": "keep"})
        )
        rows = [row for split in preferences.splits().values() for row in split]
        assert {row["chosen"][0]["content"] for row in rows} == {"yes"}
        assert len(rows) == report.n_kept > 40


def test_labels_without_a_layout_that_reads_them_are_refused(tmp_path):
    file = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(UserError, match="labels is set, but layout explicit has no labels"):
        load_preferences(DataSection(sources=[Source(path=str(file), labels={"1": "first"})]))
