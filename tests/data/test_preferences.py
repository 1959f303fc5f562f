"""Loading preferences: every row is in one split or counted. Expected numbers are computed independently."""

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.messages import as_messages

from posttrain.config import DataSection, Source
from posttrain.data.demo import pairs as demo
from posttrain.data.loader import load_instructions, load_preferences
from posttrain.data.splits import prompt_key
from posttrain.data.stored import PAIR_SCHEMA, Instructions, Preferences
from posttrain.errors import UserError

SHARED_DATA = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_shared_data = pytest.mark.skipif(
    not (SHARED_DATA / "hh-rlhf").is_dir(), reason="the real data are not here: set SHARED_DATA"
)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pair(prompt, chosen="yes", rejected="no"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def load(*paths, **data):
    return load_preferences(DataSection(sources=[Source(path=str(path)) for path in paths], **data))


def prompts(rows):
    return [prompt[-1]["content"] for prompt in rows["prompt"]]


@pytest.fixture
def clean(tmp_path):
    """Return the path of a file with 200 valid pairs."""
    return write(tmp_path / "clean.jsonl", [pair(f"question {i}") for i in range(200)])


def test_row_has_the_documented_columns(clean):
    preferences, report = load(clean, test_size=0.1, validation_size=0.1)
    assert preferences.train.column_names == PAIR_SCHEMA.names
    row = preferences.train[0]
    parts = [
        [{"content": row["prompt"][0]["content"], "role": "user"}],
        [{"content": "yes", "role": "assistant"}],
        [{"content": "no", "role": "assistant"}],
    ]
    assert [as_messages(row[name]) for name in ("prompt", "chosen", "rejected")] == parts
    assert row["id"] == hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:16]
    assert row["source"].endswith("/clean")
    assert row["true_margin"] is None
    assert report.splits == {name: len(rows) for name, rows in preferences.splits().items()}
    assert report.n_read == report.n_kept == preferences.n_pairs == 200
    assert report.sources[0].format == "explicit"
    assert report.sources[0].digest
    assert report.digest == preferences.digest
    assert report.ceiling is None


def test_rows_keep_the_order_of_their_source(clean):
    preferences, _ = load(clean, test_size=0.1)
    for rows in preferences.splits().values():
        numbers = [int(prompt.split()[1]) for prompt in prompts(rows)]
        assert numbers == sorted(numbers)


def test_more_data_moves_no_prompt_to_another_split(tmp_path, clean):
    before, _ = load(clean, test_size=0.1)
    more = write(tmp_path / "more.jsonl", [pair(f"Question  {i}", "other", "rows") for i in range(400)])
    after, report = load(more, clean, test_size=0.1)
    assert report.n_dropped == 0
    for name, rows in before.splits().items():
        assert set(prompts(rows)) <= set(prompts(after.splits()[name]))


def test_every_dropped_row_is_counted_with_an_example(tmp_path):
    rows = [pair(f"question {i}") for i in range(100)] + [
        "not json",
        pair("", "a", "b"),
        pair("p", "a", "a"),
        pair("p", None, "b"),
        pair("p", "x" * 60, "b"),
        pair("ranked both ways", "a", "b"),
        pair("Ranked  both ways", "b", "a"),
        pair("ranked both ways", "a", "b"),
        pair("question 7"),
        pair("QUESTION 7"),
        pair("question 7", "yes", "another"),
    ]
    preferences, report = load(write(tmp_path / "rows.jsonl", rows), max_chars=50, test_size=0.1)
    assert report.dropped == {
        "conflicting": 3,
        "duplicate": 2,
        "unparsable": 1,
        "empty": 1,
        "identical": 1,
        "not_text": 1,
        "overlong": 1,
    }
    assert (report.n_read, report.n_kept, report.n_dropped) == (111, 101, 10)
    assert preferences.n_pairs == 101
    assert report.examples["unparsable"] == [f"{tmp_path}/rows.jsonl:101: None"]
    assert report.examples["overlong"][0].startswith(f"{tmp_path}/rows.jsonl:105: {{'chosen': 'xxxx")
    assert report.examples["duplicate"][0] == (
        f"{tmp_path}/rows.jsonl:109: {{'chosen': 'yes', 'prompt': 'question 7', 'rejected': 'no'}}"
    )
    assert all(text.isprintable() for texts in report.examples.values() for text in texts)


def test_prompts_of_a_sources_own_test_split_are_removed_from_training(tmp_path):
    write(tmp_path / "d" / "train.jsonl", [pair(f"question {i}") for i in range(100)])
    write(tmp_path / "d" / "test.jsonl", [pair("question 3", "a", "b"), pair("QUESTION  4", "a", "b"), pair("new")])
    preferences, report = load(tmp_path / "d", validation_size=0.2)
    assert prompts(preferences.test) == ["question 3", "QUESTION  4", "new"]
    assert report.dropped == {"prompt_in_test": 2}
    assert report.examples["prompt_in_test"][0].startswith(f"{tmp_path}/d/train.jsonl:4: ")
    assert report.splits["train"] + report.splits["validation"] == 98
    assert report.splits["validation"] > 0


def test_a_test_prompt_of_one_source_is_in_no_other_split_of_another(tmp_path, clean):
    """Sources with and without their own test split must have disjoint splits together."""
    write(tmp_path / "own" / "train.jsonl", [pair(f"question {i}", "better", "worse") for i in range(200)])
    write(tmp_path / "own" / "test.jsonl", [pair(f"question {i}", "other", "rows") for i in range(0, 200, 20)])
    preferences, report = load(clean, tmp_path / "own", test_size=0.2, max_drop_share=0.9)
    found = Counter(
        (name, key) for name, rows in preferences.splits().items() for key in set(map(prompt_key, rows["prompt"]))
    )
    assert len({key for _, key in found}) == len(found)
    assert report.n_read == 410 == report.n_kept + report.n_dropped
    assert set(report.dropped) == {"prompt_in_test"}


def test_too_many_unusable_rows_stop_the_run(tmp_path, clean):
    path = write(tmp_path / "bad.jsonl", [pair("q", "a", "b"), *["{"] * 3, pair("r", "same", "same")])
    with pytest.raises(UserError) as error:
        load(path)
    message = str(error.value)
    assert "4 of 5 rows (80.0%) cannot be used, more than data.max_drop_share 0.2 allows" in message
    assert f"  unparsable 3: the line or its transcript cannot be parsed; for example {path}:2: None\n" in message
    assert "  identical 1:" in message
    assert "raise data.max_drop_share" in message
    load(path, clean, max_drop_share=0.03)


@pytest.mark.parametrize(
    ("rows", "data", "words"),
    [
        ([], {}, "rows.jsonl: has no rows"),
        (
            ["x", "y"],
            {},
            "none of the first 2 rows can be parsed, starting with .*rows.jsonl:1: the content must match",
        ),
        ([pair("q")], {"test_size": 0.0}, "none of 1 usable pairs is in the test split.* raise data.test_size"),
        ([pair("q", "a", "a")], {"max_drop_share": 1.0}, "none of 0 usable pairs is in the training split"),
    ],
)
def test_empty_splits_give_a_clear_error(tmp_path, rows, data, words):
    with pytest.raises(UserError, match=words):
        load(write(tmp_path / "rows.jsonl", rows), **data)


def test_digest_depends_on_the_content_only(tmp_path, clean, monkeypatch):
    first, _ = load(clean, test_size=0.1)
    elsewhere = write(tmp_path / "x" / tmp_path.name / "clean.jsonl.tmp", [pair(f"question {i}") for i in range(200)])
    second, _ = load(elsewhere.rename(elsewhere.with_suffix("")), test_size=0.1)
    other_split, _ = load(clean, test_size=0.1, seed=1)
    fewer = Preferences(first.train.select(range(10)), first.validation, first.test)
    assert first.digest == second.digest
    assert len({first.digest, other_split.digest, fewer.digest}) == 3


def test_preferences_survive_saving_and_loading(tmp_path, clean):
    preferences, _ = load(clean, test_size=0.1)
    shuffled = Preferences(preferences.train.shuffle(seed=1), preferences.validation, preferences.test.select([]))
    for saved in (preferences, shuffled):
        saved.save(tmp_path / "saved")
        loaded = Preferences.load(tmp_path / "saved")
        assert loaded.digest == saved.digest
        assert loaded.train.features == saved.train.features
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]


def test_loading_writes_no_files(tmp_path, clean, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load(clean, test_size=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["clean.jsonl"]


def test_demo_report_counts_the_planted_defects():
    preferences, report = load("demo")
    assert report.dropped == {reason: n for reason, n in demo.PLANTED.items() if n}
    assert report.n_read == demo.N_ROWS
    margins = preferences.test["true_margin"]
    best = [1 / (1 + math.exp(-abs(margin))) for margin in margins]
    assert report.ceiling == pytest.approx(sum(best) / len(best), rel=1e-12)
    right = sum(margin > 0 for margin in margins) / len(margins)
    assert right == pytest.approx(report.ceiling, abs=4 * math.sqrt(0.25 / len(margins)))


# Counted in the raw transcripts by regular expressions, apart from this package: rows; blank turns; two turns of one
# speaker in a row; last turns of the human; equal last answers. No prompt of a test part is in a train part.
HH_RLHF = {
    "harmless-base": (1676, {"empty": 3, "turn_order": 4}, 321),
    "helpful-base": (1707, {"empty": 2, "turn_order": 7, "identical": 1}, 329),
    "helpful-online": (824, {"empty": 1, "identical": 2, "unanswered": 1}, 159),
    "helpful-rejection-sampled": (1993, {"turn_order": 3, "identical": 23}, 379),
    ".": (6200, {"empty": 6, "turn_order": 14, "identical": 26, "unanswered": 1}, 1188),
}


@needs_shared_data
@pytest.mark.parametrize("subset", HH_RLHF)
def test_hh_rlhf_counts_equal_those_of_a_plain_loop(subset):
    n_rows, dropped, n_test = HH_RLHF[subset]
    checks = dict.fromkeys(
        ("near_test", "near_validation", "near_duplicate"), "keep"
    )  # tests/test_checks.py counts these
    preferences, report = load(SHARED_DATA / "hh-rlhf" / subset, checks=checks)
    assert report.sources[0].format == "hh_rlhf"
    assert report.n_read == n_rows
    assert report.dropped == dropped
    assert len(preferences.test) == n_test
    assert {source.split("/")[0] for source in preferences.train["source"]} == {"hh-rlhf"}


@needs_shared_data
def test_gsm8k_is_read_as_instructions(clean):
    preferences, _ = load(clean, test_size=0.1)
    source = Source(
        path=str(SHARED_DATA / "gsm8k" / "t*.jsonl.gz"), columns={"prompt": "question", "completion": "answer"}
    )
    instructions, report = load_instructions(source, preferences, DataSection())
    assert len(instructions.rows) == report.n_read == 7473
    assert report.sources[0].format == "prompt_completion"


def test_held_out_prompts_are_removed_from_instructions(tmp_path, clean):
    preferences, _ = load(clean, test_size=0.1, validation_size=0.1)
    held_out = prompts(preferences.validation) + prompts(preferences.test)
    kept = prompts(preferences.train)[:150]
    rows = [{"instruction": text.upper(), "output": "x"} for text in held_out + kept + kept[:2]]
    path = write(tmp_path / "set" / "train.jsonl", rows)
    write(tmp_path / "set" / "test.jsonl", [{"instruction": "not read", "output": "x"}])
    data = DataSection(max_drop_share=0.5)
    instructions, report = load_instructions(Source(path=str(path.parent)), preferences, data)
    assert prompts(instructions.rows) == [text.upper() for text in kept]
    assert report.dropped == {"held_out": len(held_out), "duplicate": 2}
    assert report.n_read == len(rows) == report.n_kept + report.n_dropped
    assert report.splits == {"train": 150}
    instructions.save(tmp_path / "saved")
    assert Instructions.load(tmp_path / "saved").digest == instructions.digest == report.digest


def test_instructions_with_only_held_out_prompts_give_a_clear_error(tmp_path, clean):
    preferences, _ = load(clean, test_size=0.1)
    path = write(tmp_path / "set.jsonl", [{"prompt": text, "completion": "x"} for text in prompts(preferences.test)])
    with pytest.raises(UserError, match=r"none of [0-9]+ rows is left for training"):
        load_instructions(Source(path=str(path)), preferences, DataSection(max_drop_share=1.0))


TEXT = st.sampled_from(["a", "b", "A ", "", "\n\nHuman: q\n\nAssistant: a", "Who? Ann", "Who? Ben"]) | st.text(
    max_size=4
)
ROLE = st.sampled_from(["user", "assistant", "system", "tool"])
TURN = st.fixed_dictionaries({"role": ROLE, "content": TEXT | st.none()})
VALUE = TEXT | st.none() | st.integers() | st.floats() | st.lists(TURN | st.integers(), max_size=4)
PAIR = st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT})
ROW = PAIR | st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "x"]), VALUE) | VALUE


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows=st.lists(ROW, max_size=12), test_rows=st.lists(PAIR, max_size=4), junk=st.binary(max_size=20))
def test_any_rows_are_counted_or_give_a_clear_error(tmp_path, rows, test_rows, junk):
    train = write(tmp_path / "d" / "train.jsonl", [json.dumps(row) for row in rows])
    train.write_bytes(train.read_bytes() + junk)
    write(tmp_path / "d" / "test.jsonl", test_rows)
    try:
        preferences, report = load(tmp_path / "d", max_drop_share=1.0)
    except UserError:
        return
    assert report.n_read == report.n_kept + report.n_dropped
    assert report.n_kept == preferences.n_pairs == sum(report.splits.values())
    assert report.n_dropped == sum(report.dropped.values())
    keys = [set(map(prompt_key, rows["prompt"])) for rows in preferences.splits().values()]
    assert len(set.union(*keys)) == sum(map(len, keys))
