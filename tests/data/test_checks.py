"""Data checks: each finds its defects, follows its policy, and every row is kept or counted."""

import gzip
import json
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.config import DataSection, Source, check_config
from posttrain.config.check_policies import POLICIES, REASONS, WHY
from posttrain.data.checks import find_bad_characters, fix_characters
from posttrain.data.copies.contamination import EvaluationPrompts
from posttrain.data.copies.near_duplicates import N_BANDS, N_ROWS, similarity, words
from posttrain.data.loader import load_instructions, load_preferences
from posttrain.errors import UserError

ROOT = Path(__file__).parents[2]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_gz(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def sentence(rng, n):
    return " ".join(rng.choices([f"w{i}" for i in range(500)], k=n))


def good_pairs(n, seed=0):
    """Return unrelated pairs: each part has 30 of 500 random words."""
    rng = random.Random(seed)
    return [{name: sentence(rng, 30) for name in ("prompt", "chosen", "rejected")} for _ in range(n)]


def load(*paths, **data):
    return load_preferences(
        DataSection(**{"sources": [Source(path=str(path)) for path in paths], "test_size": 0.1, **data})
    )


# Characters


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("plain\n\ttext, ünïcode 😀👩‍👩‍👧", []),
        ("half an emoji \ud83d", ["broken_encoding"]),
        ("caf\ufffd", ["broken_encoding"]),
        ("nul \0", ["control_characters"]),
        ("windows\r\nlines", ["control_characters"]),
        ("\x1b[31m \udcff", ["broken_encoding", "control_characters"]),
    ],
)
def test_bad_characters_are_found(text, found):
    assert find_bad_characters(text) == found


def test_fixing_keeps_line_breaks():
    assert fix_characters("a\r\nb\rc\x00d\te", "control_characters") == "a\nb\nc" + "d\te"
    assert fix_characters("a\ud83db\ufffd", "broken_encoding") == "ab"


@pytest.mark.parametrize(
    ("policy", "dropped", "fixed", "flagged", "text"),
    [
        (None, {}, {"control_characters": 1}, {}, "yes\nindeed"),
        ("keep", {}, {}, {"control_characters": 1}, "yes\r\nindeed"),
        ("drop", {"control_characters": 1}, {}, {}, None),
    ],
)
def test_control_characters_are_fixed_kept_or_dropped(tmp_path, policy, dropped, fixed, flagged, text):
    rows = [*good_pairs(60), {"prompt": "really?", "chosen": "yes\r\nindeed", "rejected": "no"}]
    checks = {} if policy is None else {"control_characters": policy}
    preferences, report = load(write(tmp_path / "a.jsonl", rows), checks=checks)
    assert (report.dropped, report.fixed, report.flagged) == (dropped, fixed, flagged)
    kept = [row["chosen"][0]["content"] for split in preferences.splits().values() for row in split]
    assert [found for found in kept if "indeed" in found] == ([] if text is None else [text])
    assert len(report.examples["control_characters"]) == 1


def test_lone_surrogate_is_dropped_or_removed(tmp_path):
    rows = [*good_pairs(60), {"prompt": "q", "chosen": "yes \ud83d", "rejected": "no"}]
    path = write(tmp_path / "a.jsonl", rows)
    assert load(path)[1].dropped == {"broken_encoding": 1}
    preferences, report = load(path, checks={"broken_encoding": "fix"})
    assert report.fixed == {"broken_encoding": 1}
    preferences.save(tmp_path / "saved")


# Policies


def test_checks_with_policies_are_known():
    assert set(POLICIES) < set(REASONS)
    assert set(POLICIES) <= set(WHY) < set(REASONS)


def test_policy_that_a_check_does_not_allow_is_refused():
    for checks, words_ in [
        ({"near_duplicat": "keep"}, "near_duplicat: unknown check .did you mean 'near_duplicate'"),
        ({"empty": "keep"}, "empty: policy keep is not allowed: must be drop, fail"),
        ({"prompt_in_test": "keep"}, "prompt_in_test: policy keep is not allowed"),
        ({"empty": "delete"}, "data.checks.empty: 'delete' is not allowed"),
    ]:
        with pytest.raises(UserError, match=words_):
            check_config({"data": {"checks": checks}})


def test_fail_stops_at_a_single_row(tmp_path):
    path = write(tmp_path / "a.jsonl", [*good_pairs(60), {"prompt": "q", "chosen": "a", "rejected": " "}])
    with pytest.raises(UserError, match=r"rows fail a check whose policy is `fail`:\n  empty 1: .*a\.jsonl:61"):
        load(path, checks={"empty": "fail"})
    load(path, checks={"identical": "fail"})


PLANTED = {"duplicate": 2, "conflicting": 2, "near_duplicate": 3}


def with_planted_repeats():
    rows = good_pairs(200)
    for row in rows[:2]:
        rows.append(dict(row))
    rows.append({**rows[5], "chosen": rows[5]["rejected"], "rejected": rows[5]["chosen"]})
    for i in range(10, 13):
        rows.append({**rows[i], "chosen": rows[i]["chosen"] + " indeed"})
    return rows


@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_repeats_are_counted_under_every_policy(tmp_path, policy):
    path = write(tmp_path / "a.jsonl", with_planted_repeats())
    preferences, report = load(path, checks=dict.fromkeys(PLANTED, policy))
    assert (report.dropped if policy == "drop" else report.flagged) == PLANTED
    assert preferences.n_pairs == report.n_kept == 206 - (sum(PLANTED.values()) if policy == "drop" else 0)
    assert len(report.examples["near_duplicate"]) == 3
    assert re.search(r"a\.jsonl:20[456]: .*'like': '.*a\.jsonl:1[123]'", report.examples["near_duplicate"][0])


def test_ten_examples_are_kept_for_each_reason(tmp_path):
    rows = good_pairs(200) + [{"prompt": f"q{i}", "chosen": "a", "rejected": ""} for i in range(15)]
    _, report = load(write(tmp_path / "a.jsonl", rows))
    assert report.dropped == {"empty": 15}
    assert len(report.examples["empty"]) == 10


# Near copies


def test_similarity_equals_a_value_worked_by_hand():
    # "a b c d": triples abc bcd cd_ d__; "a b c e": abc bce ce_ e__; one of seven is common
    assert similarity(words(["A, b c d!"]), words(["a b c e"])) == pytest.approx(1 / 7)
    assert similarity(words(["A b: c"]), words(["a B c."])) == 1
    assert words(["你好 ok,世"]) == ["你", "好", "ok", "世"]
    assert words(["?!"]) == ["?!"]


def test_near_copy_of_a_test_prompt_is_not_in_training(tmp_path):
    """One more word after 40 removes 2 of 40 trigrams and adds 3, so the similarity is 38/43 = 0.88. After 10 words: 8/13."""
    rng = random.Random(1)
    long, short = [sentence(rng, 40) for _ in range(60)], [sentence(rng, 10) for _ in range(60)]
    test = [{"prompt": text, "chosen": "a", "rejected": "b"} for text in (*long, *short)]
    train = [{"prompt": f"{text} please", "chosen": "c", "rejected": "d"} for text in (*long, *short)]
    write(tmp_path / "d" / "train.jsonl", train + good_pairs(300))
    write(tmp_path / "d" / "test.jsonl", test)
    preferences, report = load(tmp_path / "d", validation_size=0.2)
    assert report.dropped == {"near_test": 60}
    assert len(preferences.test) == 120
    kept = {row["prompt"][0]["content"] for row in preferences.train}
    assert not kept & {f"{text} please" for text in long}
    _, report = load(tmp_path / "d", validation_size=0.2, checks={"near_test": "keep"})
    assert (report.dropped, report.flagged) == ({}, {"near_test": 60})


def test_same_prompt_with_other_answers_is_no_near_duplicate(tmp_path):
    rng = random.Random(2)
    prompt = sentence(rng, 200)
    rows = [{"prompt": prompt, "chosen": sentence(rng, 5), "rejected": sentence(rng, 5)} for _ in range(20)]
    _, report = load(write(tmp_path / "a.jsonl", good_pairs(100) + rows))
    assert report.n_dropped == 0


def test_probability_of_comparing_near_copies():
    """The probabilities stated in posttrain/data/copies/near_duplicates.py."""
    found = {s: 1 - (1 - s**N_ROWS) ** N_BANDS for s in (0.2, 0.8)}
    assert found[0.8] > 0.9999
    assert found[0.2] < 0.01


def test_near_copies_in_hh_rlhf_equal_those_of_an_exhaustive_search(shared_data):
    """The expected pairs come from an independent comparison of all training prompts with all test prompts."""
    folder = shared_data / "hh-rlhf" / "harmless-base"

    def prompts(name):
        for row in read_gz(folder / f"{name}.jsonl.gz"):
            turns = re.split(r"\n\n(?:Human|Assistant): ?", row["chosen"])[1:-1]
            found = [*re.findall(r"[^\W_]+", " ".join(turns).casefold()), "", ""]
            yield set(zip(found, found[1:], found[2:], strict=False))

    test = list(prompts("test"))
    near = 0
    for ours in prompts("train"):
        close = (t for t in test if 0.8 * len(t) <= len(ours) <= len(t) / 0.8)
        near += any(len(ours & t) >= 0.8 * len(ours | t) for t in close)
    _, report = load_preferences(DataSection(sources=[Source(path=str(folder))], validation_size=0))
    assert near == report.dropped["near_test"]
    assert near > 0


# Contamination


def test_row_with_half_of_an_evaluation_prompt_is_contaminated(tmp_path):
    """A prompt of 20 words has 13 8-grams: 7 of them are more than half, 6 are fewer."""
    question = [f"word{i}" for i in range(20)]
    evaluation = write(tmp_path / "eval.jsonl", [{"question": " ".join(question)}, {"question": "Who are you?"}])
    prompts = EvaluationPrompts([Source(path=str(evaluation), columns={"prompt": "question"})])
    assert prompts.are_in(["please answer: " + " ".join(question[:14]).upper() + "!"])
    assert not prompts.are_in([" ".join(question[:13])])
    assert prompts.are_in(["something", "who are you"])
    assert not prompts.are_in(["who are you today"])


def test_contaminated_rows_are_dropped_from_training_only(tmp_path):
    rng = random.Random(3)
    questions = [sentence(rng, 30) for _ in range(50)]
    evaluation = write(tmp_path / "eval.jsonl", [{"prompt": question} for question in questions])
    rows = [{"prompt": f"Task: {q}", "chosen": "a b", "rejected": "c"} for q in questions]
    preferences, report = load(
        write(tmp_path / "a.jsonl", good_pairs(300) + rows), contamination=[Source(path=str(evaluation))]
    )
    in_test = sum(row["prompt"][0]["content"].startswith("Task") for row in preferences.test)
    assert report.dropped == {"contaminated": 50 - in_test}
    assert not any(row["prompt"][0]["content"].startswith("Task") for row in preferences.train)


def test_solutions_to_a_test_set_are_contaminated_by_it(shared_data, tmp_path):
    """PROVENANCE.md: gsm8k/example_model_solutions has the questions of gsm8k/test, and none of gsm8k/train."""
    solutions = Source(
        path=str(shared_data / "gsm8k" / "example_model_solutions.jsonl.gz"),
        format="prompt_completion",
        columns={"prompt": "question", "completion": "ground_truth"},
        limit=100,
    )
    held_out, _ = load(write(tmp_path / "a.jsonl", good_pairs(60)))
    for split, n_left in (("test", 0), ("train", 100)):
        named = Source(
            path=str(shared_data / "gsm8k" / f"{split}.jsonl.gz"), columns={"prompt": "question"}, train_split=split
        )
        data = DataSection(contamination=[named], max_drop_share=1.0)
        if n_left:
            assert len(load_instructions(solutions, held_out, data)[0].rows) == n_left
        else:
            with pytest.raises(UserError, match="contaminated 100"):
                load_instructions(solutions, held_out, data)


# Labels


def test_share_of_longer_chosen_responses_worked_by_hand(tmp_path):
    rows = [{**row, "chosen": row["chosen"] + " longer" * 9} for row in good_pairs(30)]
    rows += [{**row, "rejected": row["rejected"] + " longer" * 9} for row in good_pairs(10, seed=1)]
    rows += [{"prompt": f"equal {i}", "chosen": "abc", "rejected": "xyz"} for i in range(5)]
    path = write(tmp_path / "a.jsonl", rows)
    _, report = load(path, max_length_bias=0.5)
    (figures,) = report.figures.by_source.values()
    assert figures.n_rows == 45
    # Wilson's interval of 30 in 40: (0.75 + z²/80 ± z sqrt(0.75 0.25/40 + z²/6400)) / (1 + z²/40), z = 1.96
    assert figures.longer_is_chosen.value == 0.75
    assert (figures.longer_is_chosen.low, figures.longer_is_chosen.high) == pytest.approx((0.5981, 0.8581), abs=1e-4)
    assert report.flagged == {"length_bias": 1}
    assert load(path)[1].flagged == {}
    with pytest.raises(UserError, match=r"chosen one in 75\.0% of the pairs: more than data\.max_length_bias 0\.5"):
        load(path, max_length_bias=0.5, checks={"length_bias": "fail"})


def test_disputed_labels_are_found(tmp_path):
    rows = good_pairs(100)
    for i, row in enumerate(rows):
        row["annotators_agree"] = 1.0 if i % 4 else 0.6
    path = write(tmp_path / "a.jsonl", rows)
    _, report = load(path)
    (figures,) = report.figures.by_source.values()
    assert (report.flagged, report.n_dropped) == ({"disputed": 25}, 0)
    assert (figures.n_annotated, figures.agreement) == (100, pytest.approx(0.9))
    assert load(path, checks={"disputed": "drop"}, max_drop_share=0.3)[1].dropped == {"disputed": 25}


def test_agreement_of_pandalms_annotators(shared_data):
    """The expected value is computed from the file: the mean share of votes for the majority, over rows with a majority."""
    rows = read_gz(shared_data / "pandalm" / "testset-v1.jsonl.gz")
    votes = [[row[f"annotator{i}"] for i in (1, 2, 3)] for row in rows]
    best = [Counter(three).most_common(1)[0] for three in votes]
    shares = [n / 3 for vote, n in best if vote != 0 and n > 1]
    _, report = load_preferences(
        DataSection(
            sources=[Source(path=str(shared_data / "pandalm"), train_split="train", test_split=None)],
            max_drop_share=1,
            checks={"near_duplicate": "keep", "near_test": "keep", "near_validation": "keep"},
        )
    )
    (figures,) = report.figures.by_source.values()
    assert figures.n_annotated == report.n_kept
    assert figures.agreement == pytest.approx(sum(shares) / len(shares), abs=0.01)


# Hostile rows and files

NASTY = [
    "",
    " ",
    "\0",
    "\ud83d",
    "😀",
    "a\r\nb",
    "\ufffd",
    "x" * 70_000,
    "\n\nHuman: q\n\nAssistant: a",
    "Who? Ann",
    "Who? Ben",
]
TEXT = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=()), max_size=6)
TURN = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value"]), TEXT | st.sampled_from(["user", "assistant"])
)
NESTED = st.recursive(
    TEXT | st.none() | st.booleans() | st.integers() | st.floats() | TURN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
COLUMN = st.sampled_from(["prompt", "chosen", "rejected", "messages", "annotators_agree", "tools", "extra"])
PAIR = st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT})
ROW = PAIR | PAIR | st.dictionaries(COLUMN, NESTED) | NESTED
KEPT_OR_DROPPED = {check: sorted(set(policies) - {"fail"}) for check, policies in POLICIES.items()}


@pytest.mark.slow
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    first=st.lists(ROW, max_size=10),
    second=st.lists(ROW, max_size=6),
    test=st.lists(PAIR, max_size=3),
    checks=st.fixed_dictionaries({}, optional={c: st.sampled_from(p) for c, p in KEPT_OR_DROPPED.items()}),
)
def test_any_row_is_kept_or_counted(tmp_path, first, second, test, checks):
    base = good_pairs(3)
    for name, rows in (
        ("a/train", base + first),
        ("a/test", test + good_pairs(2, seed=5)),
        ("b", good_pairs(3, 1) + second),
    ):
        write(tmp_path / f"{name}.jsonl", rows)
    n_rows = [len(base + first) + len(test) + 2, 3 + len(second)]
    try:
        preferences, report = load(tmp_path / "a", tmp_path / "b.jsonl", max_drop_share=1.0, checks=checks)
    except UserError:
        return
    assert [source.n_read for source in report.sources] == n_rows
    for source in report.sources:
        assert source.n_read == source.n_kept + sum(source.dropped.values())
    assert report.n_read == sum(n_rows) == report.n_kept + report.n_dropped
    assert report.n_kept == preferences.n_pairs == sum(source.n_kept for source in report.sources)
    assert report.n_dropped == sum(report.dropped.values()) == sum(sum(s.dropped.values()) for s in report.sources)
    assert set(report.examples) >= set(report.dropped)
    report.model_dump_json().encode()  # no lone surrogate is left in it


def test_truncated_gzip_gives_a_clear_error(tmp_path):
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in good_pairs(2000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be read completely"):
        load(tmp_path / "a.jsonl.gz")


# The same everywhere

DIGEST = """
import hashlib, sys
from posttrain.config import DataSection, Source
from posttrain.data.loader import load_preferences
preferences, report = load_preferences(DataSection(sources=[Source(path=sys.argv[1])]))
print(hashlib.sha256("".join(preferences.test["id"]).encode()).hexdigest())
print(preferences.digest, report.model_dump_json())
"""


@pytest.mark.slow
def test_splits_are_identical_in_every_process(tmp_path):
    path = write(tmp_path / "d" / "a.jsonl", with_planted_repeats())
    said = [
        subprocess.run(
            [sys.executable, "-c", DIGEST, str(path)],
            cwd=ROOT,
            env={
                "PATH": "",
                "PYTHONPATH": str(ROOT),
                "PYTHONHASHSEED": seed,
                "RAYON_NUM_THREADS": n,
                "OMP_NUM_THREADS": n,
            },
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for seed, n in (("1", "1"), ("2", "4"))
    ]
    assert said[0] == said[1]
    # The ids of the test pairs. If this moves, so has everyone's held-out set.
    assert said[0].split()[0].decode() == "bbeec7951ecc00c9d297c099aca48440cce9de054aa178bf85517b880072def1"


def test_order_of_rows_does_not_change_the_splits(tmp_path):
    rows = good_pairs(300)
    shuffled = random.Random(0).sample(rows, len(rows))
    first, second = (load(write(tmp_path / f"{i}" / "a.jsonl", each))[0] for i, each in enumerate((rows, shuffled)))
    for name in ("train", "validation", "test"):
        assert set(first.splits()[name]["id"]) == set(second.splits()[name]["id"])


def test_near_copies_of_test_prompts_stay_out_of_training_as_data_grows(tmp_path):
    """Adding rows never moves a test prompt to another split, and never adds a near copy of it to training."""
    rng = random.Random(4)
    rows = [{**row, "prompt": sentence(rng, 40)} for row in good_pairs(100)]
    before, _ = load(write(tmp_path / "a.jsonl", rows), test_size=0.3)
    held_out = {row["prompt"][0]["content"] for row in before.test}
    more = [{**row, "prompt": f"{text} please"} for row, text in product(good_pairs(2, seed=7), sorted(held_out))]
    after, _ = load(write(tmp_path / "b.jsonl", more), tmp_path / "a.jsonl", test_size=0.3, max_drop_share=1)
    assert held_out <= {row["prompt"][0]["content"] for row in after.test}
    trained_on = [words([row["prompt"][0]["content"]]) for row in after.train]
    assert all(similarity(words([text]), ours) < 0.8 for text in held_out for ours in trained_on)


@pytest.mark.slow
def test_rows_are_streamed(tmp_path):
    """Memory is measured with 30,000 rows in a separate process. It must not grow with the text of the rows."""
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import json, pathlib, data_scale\n"
        "small, large = (pathlib.Path(sys.argv[1]) / f'{n}.jsonl' for n in (2000, 30000))\n"
        "data_scale.write_pairs(small, 2000); data_scale.write_pairs(large, 30000)\n"
        "print(json.dumps([data_scale.measure(small), data_scale.measure(large)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, check=True, timeout=300
    )
    small, large = json.loads(done.stdout)
    assert large["n_rows"] == 30_000
    assert large["rows_per_s"] > 1112  # 1 000 000 in 15 minutes
    # Grown by 28 000 rows; 4 GiB less what is there from the start, over 1 000 000 rows.
    grown_per_row = (large["peak_gib"] - small["peak_gib"]) / 28_000
    assert small["peak_gib"] + grown_per_row * 1_000_000 < 4
