"""Mixtures: sources have exactly the shares given by their weights, and left-out pairs are counted."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_files import write_rows

from posttrain.config import DataSection, SftSection, Source
from posttrain.data.loader import load_instructions, load_preferences
from posttrain.data.mixture import find_left_out, find_not_replayed
from posttrain.errors import UserError


def left_out(counts, weights, seed=0, prefix=b""):
    sources = [i for i, n in enumerate(counts) for _ in range(n)]
    keys = [prefix + str(i).encode() for i in range(len(sources))]
    gone = find_left_out(sources, keys, weights, [f"source {i}" for i in range(len(counts))], seed)
    return [n - sum(sources[i] == source for i in gone) for source, n in enumerate(counts)], gone


@pytest.mark.parametrize(
    ("counts", "weights", "kept"),
    [
        ((100, 100), (1, 1), [100, 100]),
        ((100, 100), (3, 1), [100, 33]),
        ((100, 900), (1, 1), [100, 100]),
        ((100, 900), (0.5, 4.5), [100, 900]),
        ((10, 70, 20), (0.1, 0.3, 0.6), [3, 10, 20]),  # 20 / 0.6 = 33.3 pairs to a weight of 1
        ((3, 3), (0.3, 0.1), [3, 1]),
        ((1000, 1), (1000, 1), [1000, 1]),
        ((5, 5), (1000, 1), [5, 1]),  # a source that is named has a pair at least
    ],
)
def test_weights_are_shares_limited_by_the_scarcest_source(counts, weights, kept):
    assert left_out(counts, weights)[0] == kept


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 100)), min_size=1, max_size=4))
def test_no_source_exceeds_its_share_and_one_is_complete(sources):
    counts, weights = zip(*sources, strict=True)
    kept, _ = left_out(counts, weights)
    unit = min(n / weight for n, weight in zip(counts, weights, strict=True))
    assert any(n == n_kept for n, n_kept in zip(counts, kept, strict=True))
    assert all(n == max(1, int(unit * weight + 1e-6)) for n, weight in zip(kept, weights, strict=True))


def test_higher_weight_only_adds_pairs_and_seed_changes_the_sample():
    few, more, other = (
        left_out((90, 90), (1, 3))[1],
        left_out((90, 90), (2, 3))[1],
        left_out((90, 90), (1, 3), seed=1)[1],
    )
    assert more < few
    assert len(other) == len(few)
    assert other != few


def test_source_without_pairs_is_refused():
    with pytest.raises(UserError, match="source 1: has no training pairs left"):
        left_out((3, 0), (1, 1))


def write(path, name, n):
    rows = [{"prompt": f"{name} {i}", "chosen": "yes", "rejected": "no"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_left_out_pairs_of_a_mixture_are_counted(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", name, n) for name, n in {"a": 300, "b": 900}.items()]
    (tmp_path / "a.jsonl").rename(tmp_path / "train.jsonl")
    write(tmp_path / "test.jsonl", "t", 40)
    sources = [Source(path=f"{tmp_path}/t*.jsonl", weight=0.75), Source(path=paths[1] + ":800", weight=0.25)]
    preferences, report = load_preferences(DataSection(sources=sources, test_size=0.1, validation_size=0))
    counts = Counter(preferences.train["source"])
    assert len(counts) == 2
    n_first, n_second = sorted(counts.values(), reverse=True)
    assert n_second == n_first // 3
    assert n_first == 300 - report.dropped.get("prompt_in_test", 0)  # the first has a test split of its own
    assert report.splits["test"] > 40 + 40  # the second's held-out pairs are not thinned
    assert report.n_rows == report.n_read == 300 + 40 + 800
    assert report.n_read == report.n_kept + report.n_dropped
    assert report.dropped["not_sampled"] == 800 - n_second - (report.splits["test"] - 40)


def test_instruction_sets_are_mixed_by_weight(tmp_path):
    for name, n in (("a", 30), ("b", 60)):
        rows = [{"instruction": f"{name} asks {i}", "output": f"{name} answers {i}"} for i in range(n)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    data = DataSection(checks={"near_duplicate": "keep", "near_held_out": "keep"})
    write_rows(
        tmp_path / "p.jsonl", [{"prompt": f"{i} q", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(20)]
    )
    preferences, _ = load_preferences(
        DataSection(
            sources=[{"path": str(tmp_path / "p.jsonl")}],
            test_size=0.3,
            checks={"near_duplicate": "keep", "near_test": "keep", "near_validation": "keep"},
        )
    )
    section = SftSection(
        dataset=[{"path": f"{tmp_path}/a.jsonl", "weight": 1}, {"path": f"{tmp_path}/b.jsonl", "weight": 0.5}]
    )
    instructions, report = load_instructions(section.datasets, preferences, data)
    assert report.dropped == {"not_sampled": 45}  # 30 of a, and so 15 of b
    assert [source.n_kept for source in report.sources] == [30, 15]
    assert len(instructions.rows) == 45
    unweighted, report = load_instructions(
        [source.model_copy(update={"weight": None}) for source in section.datasets], preferences, data
    )
    assert len(unweighted.rows) == 90


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ([{"path": "a", "weight": 1}, "b"], "b has no weight, but other sources have one"),
        ([{"path": "a", "format": "explicit"}], "format explicit contains pairs"),
        ([], "the list is empty"),
        ({"path": "a", "weight": 1}, "weight has no meaning for a single dataset"),
    ],
)
def test_lists_of_instruction_sets_are_checked(dataset, words):
    with pytest.raises(ValueError, match=words):
        SftSection(dataset=dataset)


def test_one_instruction_set_is_a_list_of_one():
    assert [source.path for source in SftSection(dataset="a").datasets] == ["a"]
    assert SftSection().datasets == []


@pytest.mark.parametrize(
    ("counts", "share", "kept"),
    [
        ((100, 70), 0.3, [30, 70]),  # 30 of 100
        ((60, 40, 50), 0.5, [50, 50]),  # old pairs of both sources: 50 of 100
        ((10, 90), 0.5, [10, 90]),  # too few old pairs: all of them
        ((100, 9), 0.1, [1, 9]),
    ],
)
def test_old_pairs_have_their_share_beside_all_new_ones(counts, share, kept):
    sources = [i for i, n in enumerate(counts) for _ in range(n)]
    keys = [str(i).encode() for i in range(len(sources))]
    gone = find_not_replayed(sources, keys, share, seed=0)
    n_kept = [n - sum(sources[i] == source for i in gone) for source, n in enumerate(counts)]
    assert [sum(n_kept[:-1]), n_kept[-1]] == kept
    more = find_not_replayed(sources, keys, min(share + 0.2, 0.9), seed=0)
    assert more <= gone  # a larger share only adds pairs


def test_replay_is_counted_and_leaves_the_test_pairs_alone(tmp_path):
    for name, n in (("old", 200), ("new", 40)):
        rows = [
            {"prompt": f"{name} question {i}?", "chosen": f"yes {i} {name}", "rejected": f"no {i} {name}"}
            for i in range(n)
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    sources = [Source(path=str(tmp_path / f"{name}.jsonl")) for name in ("old", "new")]
    section = DataSection(
        sources=sources, checks={"near_duplicate": "keep", "near_test": "keep", "near_validation": "keep"}
    )
    whole, _ = load_preferences(section)
    part, report = load_preferences(section.model_copy(update={"replay": 0.25}))
    n_new = sum("new question" in row["prompt"][0]["content"] for row in part.train)
    assert n_new == sum("new question" in row["prompt"][0]["content"] for row in whole.train)
    assert len(part.train) - n_new == n_new // 3
    assert report.dropped == {"not_sampled": len(whole.train) - len(part.train)}
    assert part.test["id"] == whole.test["id"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["demo"], "there is only one source"),
        ([{"path": "a.jsonl", "weight": 1}, {"path": "b.jsonl", "weight": 1}], "remove one of them"),
    ],
)
def test_replay_needs_old_pairs_and_no_weights(sources, message):
    with pytest.raises(ValueError, match=message):
        DataSection(sources=sources, replay=0.3)
