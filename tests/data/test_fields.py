"""Every column and every key of a message is used, counted, or stops the run."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.data_files import write_rows
from support.messages import as_messages

from posttrain.config import DataSection, Source
from posttrain.data.formats.fields import holds
from posttrain.data.loader import load_instructions, load_preferences
from posttrain.errors import UserError

KEEP = {"near_duplicate": "keep", "near_test": "keep", "near_validation": "keep", "length_bias": "keep"}


def load(folder, rows, checks=None, **source):
    """Return the kept rows by their chosen text, and the report."""
    write_rows(folder / "pairs.jsonl", rows)
    data = DataSection(
        sources=[Source(path=str(folder / "pairs.jsonl"), **source)], test_size=0.3, checks=KEEP | (checks or {})
    )
    preferences, report = load_preferences(data)
    kept = {row["chosen"][-1]["content"]: row for split in preferences.splits().values() for row in split}
    return kept, report


def rows_with(n=20, **columns):
    """Pairs with further columns, in which `{i}` is the number of the row."""

    def value(column, i):
        return column.replace("{i}", str(i)) if isinstance(column, str) else column

    return [
        {"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"}
        | {name: value(column, i) for name, column in columns.items()}
        for i in range(n)
    ]


def prompts(kept, i=3):
    return as_messages(kept[f"yes {i}"]["prompt"])


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_column_with_the_system_prompt_comes_first(tmp_path, name):
    kept, report = load(tmp_path, rows_with(**{name: "be {i}"}))
    assert prompts(kept) == [{"role": "system", "content": "be 3"}, {"role": "user", "content": "question 3"}]
    assert report.figures.n_with_system == 20
    assert report.sources[0].unread == {}


def test_another_system_message_than_the_column_is_counted(tmp_path):
    rows = rows_with(system="be kind")
    for i in (3, 4):
        messages = [{"role": "system", "content": "be kind" if i == 3 else "be rude"}, {"role": "user", "content": "q"}]
        rows[i]["prompt"] = messages
    kept, report = load(tmp_path, rows)
    assert prompts(kept) == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "q"}]
    assert report.dropped == {"system_differs": 1}


@pytest.mark.parametrize("columns", [{}, {"prompt": "instruction"}])
def test_the_input_of_alpaca_is_in_the_prompt_whatever_the_mapping(tmp_path, columns):
    rows = [
        {"instruction": row["prompt"], **{name: row[name] for name in ("input", "chosen", "rejected")}}
        for row in rows_with(input="text {i}")
    ]
    kept, _ = load(tmp_path, rows, columns=columns)
    assert prompts(kept) == [{"role": "user", "content": "question 3\n\ntext 3"}]


def test_an_instruction_beside_the_mapped_prompt_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="unread_content 20"):
        load(tmp_path, rows_with(instruction="Translate"))
    kept, _ = load(tmp_path, rows_with(instruction="question {i}"))  # which is the prompt itself
    assert prompts(kept) == [{"role": "user", "content": "question 3"}]


def test_input_of_instructions_is_in_the_prompt(tmp_path):
    rows = [{"question": f"Name {i}", "input": f"text {i}", "answer": f"yes {i}"} for i in range(20)]
    source = Source(
        path=str(write_rows(tmp_path / "sft.jsonl", rows)), columns={"prompt": "question", "completion": "answer"}
    )
    write_rows(tmp_path / "pairs.jsonl", rows_with())
    data = DataSection(
        sources=[Source(path=str(tmp_path / "pairs.jsonl"))], test_size=0.3, checks=KEEP | {"near_held_out": "keep"}
    )
    preferences, _ = load_preferences(data)
    instructions, _ = load_instructions(source, preferences, data)
    assert instructions.rows[3]["prompt"][0]["content"] == "Name 3\n\ntext 3"


def test_the_history_of_llama_factory_comes_before_the_question(tmp_path):
    kept, _ = load(tmp_path, rows_with(history=[["hi", "hello"]]))
    assert prompts(kept) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "question 3"},
    ]


@pytest.mark.parametrize(
    "columns",
    [{"images": ["a.png"]}, {"video": "a.mp4"}, {"chosen_thinking": "hm"}, {"input": {"a": 1}}, {"documents": ["a"]}],
)
def test_content_that_nothing_carries_stops_the_run(tmp_path, columns):
    with pytest.raises(UserError, match=r"layout explicit\): rows fail a check.*\n.*unread_content 20"):
        load(tmp_path, rows_with(**columns))
    kept, report = load(tmp_path, rows_with(**columns), checks={"unread_content": "keep"})
    assert len(kept) == report.flagged["unread_content"] == 20
    assert load(tmp_path, rows_with(**dict.fromkeys(columns)))[1].n_kept == 20  # the columns are empty


def test_images_in_messages_stop_the_run(tmp_path):
    parts = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(UserError, match="unread_content 20"):
        load(tmp_path, rows_with(prompt=[{"role": "user", "content": parts}]))
    with pytest.raises(UserError, match="unread_content 20"):
        load(tmp_path, rows_with(prompt=[{"role": "user", "content": "q", "images": ["a.png"]}]))


def test_columns_and_keys_that_nothing_reads_are_counted(tmp_path):
    rows = rows_with(topic="pets", weight=0.5, lang="en", margin=None)
    rows[0] |= {"topic": " ", "weight": float("nan")}
    rows[1]["chosen"] = [{"role": "assistant", "content": "yes 1", "index": 0, "thinking": "hm"}]
    kept, report = load(tmp_path, rows)
    assert report.sources[0].unread == {"lang": 20, "topic": 19, "weight": 19, "chosen[].index": 1}
    assert kept["yes 1"]["chosen"][0]["reasoning_content"] == "hm"
    assert load(tmp_path, rows, languages=["en"])[1].sources[0].unread == {
        "topic": 19,
        "weight": 19,
        "chosen[].index": 1,
    }


def test_responses_that_the_author_excludes_are_not_used(tmp_path):
    rows = rows_with()
    for i, key in enumerate(("weight", "train", "training")):
        rows[i]["chosen"] = [{"role": "assistant", "content": f"yes {i}", key: 0}]
    assert load(tmp_path, rows)[1].dropped == {"not_trained": 3}


SCORES = [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"), ("chosen_score", "rejected_score")]


@pytest.mark.parametrize("names", SCORES)
def test_scores_that_contradict_the_choice_are_counted(tmp_path, names):
    rows = rows_with(**dict(zip(names, (4.5, 2), strict=True)))
    rows[3] |= dict(zip(names, (2, 4.5), strict=True))
    rows[4] |= dict(zip(names, (3, 3), strict=True))
    kept, report = load(tmp_path, rows)
    assert report.dropped == {"score_against_choice": 1, "tie": 1}
    assert "yes 3" not in kept
    assert report.sources[0].unread == {}
    kept, report = load(tmp_path, rows, checks={"score_against_choice": "keep"})
    assert report.flagged["score_against_choice"] == 1
    assert kept["yes 3"]["rejected"][0]["content"] == "no 3"
    with pytest.raises(UserError, match="score_against_choice 1"):
        load(tmp_path, rows, checks={"score_against_choice": "fail"})


def test_unpaired_answers_with_both_verdicts_become_pairs(tmp_path):
    """The n-th good answer to a prompt meets its n-th bad one; an answer too many has no rival."""
    rows = [
        {"prompt": f"question {i}", "completion": f"{word} {i}{n}", "label": word == "yes", "system": f"be {i}"}
        for i in range(20)
        for word, n in (("no", "a"), ("yes", "a"), ("yes", "b"))
    ]
    kept, report = load(tmp_path, rows)
    assert (report.n_rows, report.n_kept, report.dropped) == (60, 20, {"no_rival": 20})
    assert kept["yes 3a"]["rejected"][0]["content"] == "no 3a"
    assert as_messages(kept["yes 3a"]["prompt"])[0] == {"role": "system", "content": "be 3"}
    with pytest.raises(UserError, match=r"pairs\.jsonl: the rows are unpaired answers .* \(10 good, 10 bad\)"):
        load(tmp_path, [row for i, row in enumerate(rows) if i % 3 == i // 3 % 2])


COLUMN = st.sampled_from(
    [
        "prompt",
        "chosen",
        "rejected",
        "system",
        "input",
        "images",
        "history",
        "tools",
        "note",
        "score_chosen",
        "chosen_score",
    ]
)
CELL = st.sampled_from(
    [
        *(None, "", " ", "x", "question 1", 0, 1.5, False, [], ["x"], {"a": None}, {"a": "x"}),
        *([{"role": "user", "content": "x", "note": "y"}], [{"role": "assistant", "content": "x", "weight": 0}]),
    ]
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(COLUMN, CELL), max_size=5))
def test_rows_and_fields_in_are_used_or_counted(tmp_path, changes):
    """Each row is kept or counted. Each column that holds something is in the kept row, counted, or the reason of a drop."""
    rows = rows_with(8)
    rows[1 : 1 + len(changes)] = [row | change for row, change in zip(rows[1:], changes, strict=False)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    source = Source(path=str(tmp_path / "pairs.jsonl"), format="explicit")
    data = DataSection(
        sources=[source], test_size=0.3, validation_size=0, max_drop_share=1, checks=KEEP | {"unread_content": "drop"}
    )
    try:
        preferences, report = load_preferences(data)
    except UserError:  # nothing is left to train on or to test with
        return
    assert report.n_rows == len(rows)
    assert report.n_read == report.n_kept + report.n_dropped == report.n_kept + sum(report.dropped.values())
    assert report.sources[0].unread.get("note", 0) == sum(holds(row.get("note")) for row in rows)
    text = json.dumps([row for split in preferences.splits().values() for row in split])
    for row in rows:
        if str(row["chosen"]).startswith("yes") and f'"{row["chosen"]}"' in text and isinstance(row.get("system"), str):
            assert not row["system"].strip() or json.dumps(row["system"]) in text or "question 1" in row["system"]
