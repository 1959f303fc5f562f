"""Every layout gives from the real files exactly the pairs that plain loops over the files give, and the numbers found with them.

The loops here share no code with the layouts. The numbers were found on 2026-11-21 with such loops alone.
"""

import gzip
import itertools
import json
from collections import Counter, defaultdict

import pytest

from posttrain.config import Source
from posttrain.data.checks import Unusable, check_row
from posttrain.data.formats import INSTRUCTION_LAYOUTS, PREFERENCE_LAYOUTS, find_layout, read_rows
from posttrain.data.sources import open_source


def read(path, layouts=PREFERENCE_LAYOUTS, **settings):
    """Return the detected layout of a file, its pairs, and the number of rows by outcome."""
    source = Source(path=str(path), **settings)
    records = [(record, record.values) for record in open_source(source).read()]
    name, layout = find_layout(source, [values for _, values in records[:64]], layouts)  # type: ignore[misc]
    found, counts = [], Counter(rows=len(records))
    for _, items in read_rows(source, layout, records):
        counts["part of others"] += not items
        for item in items:
            try:
                if isinstance(item, Unusable):
                    raise item
                check_row(item.prompt, list(item[1:]), max_chars=50_000)
            except Unusable as unusable:
                counts[unusable.reason] += 1
            else:
                found.append(item)
    return name, found, +counts


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def texts(pairs):
    """Return each pair as the texts of its prompt and its answers."""
    return Counter(
        (tuple(turn["content"] for turn in prompt), *(part[0]["content"] for part in rest)) for prompt, *rest in pairs
    )


def test_oasst1_flat_messages(shared_data):
    path = shared_data / "oasst1" / "en-validation.jsonl.gz"
    name, found, counts = read(path, train_split="validation", test_split=None)
    rows = {row["message_id"]: row for row in lines(path)}

    def thread(row):
        """The texts from the tree's first message to this one; None where one is deleted or missing."""
        if row is None or row["deleted"]:
            return None
        if row["parent_id"] is None:
            return (row["text"],)
        before = thread(rows.get(row["parent_id"]))
        return before and (*before, row["text"])

    siblings = defaultdict(list)
    for row in rows.values():
        if row["role"] == "assistant" and row["rank"] is not None and thread(row):
            siblings[row["parent_id"]].append(row)
    expected = Counter(
        (thread(rows[parent]), better["text"], worse["text"])
        for parent, answers in siblings.items()
        for better, worse in itertools.permutations(answers, 2)
        if better["rank"] < worse["rank"] and better["text"].strip() != worse["text"].strip()
    )
    assert name == "oasst_messages"
    assert texts(found) == expected
    assert len(found) == 1021
    # 416 messages that were answered with ranks hold the pairs; 2022 = 416 + 1129 + 434 + 40 + 3.
    assert counts == {
        "rows": 2022,
        "part of others": 1129,
        "no_rival": 434,
        "deleted": 40,
        "parent_missing": 3,
        "identical": 1,
    }
    assert sum(len(pair.prompt) > 1 for pair in found) > 300


def test_oasst1_trees(shared_data):
    path = shared_data / "oasst1" / "en_100_tree.jsonl.gz"
    name, found, counts = read(path)
    expected = Counter()

    def walk(message, before):
        thread = (*before, message["text"])
        ranked = [
            reply for reply in message["replies"] if reply["role"] == "assistant" and reply.get("rank") is not None
        ]
        for better, worse in itertools.permutations(ranked, 2):
            expected[(thread, better["text"], worse["text"])] += better["rank"] < worse["rank"]
        for reply in message["replies"]:
            walk(reply, thread)

    for row in lines(path):
        walk(row["prompt"], ())
    assert name == "oasst_trees"
    assert texts(found) == +expected
    assert (len(found), counts) == (754, {"rows": 100})


def test_oasst1_pairs_can_be_limited_by_number_and_rank_difference(shared_data):
    path = shared_data / "oasst1" / "en-validation.jsonl.gz"
    options = {"train_split": "validation", "test_split": None, "languages": ["en"]}
    _, found, counts = read(path, **options, min_score_difference=2)
    assert (len(found) + counts["identical"], counts["too_close"]) == (313, 1022 - 313)
    _, found, counts = read(path, **options, max_pairs_per_prompt=1)
    assert (
        len(found) + counts["identical"] == 416
    )  # as many messages were answered with ranks, no two with the same thread
    assert counts["over_max_pairs"] == 1022 - 416


def test_pandalm(shared_data):
    path = shared_data / "pandalm" / "testset-v1.jsonl.gz"
    name, found, counts = read(path)
    expected = Counter()
    for row in lines(path):
        votes = [row[f"annotator{i}"] for i in (1, 2, 3)]
        responses = {1: row["response1"], 2: row["response2"]}
        for winner in (1, 2):
            loser = 3 - winner
            usable = (
                all(isinstance(text, str) and text.strip() for text in responses.values())
                and row["instruction"].strip()
            )
            if votes.count(winner) >= 2 and usable:
                prompt = row["instruction"] + ("\n\n" + row["input"] if row["input"].strip() else "")
                expected[((prompt,), responses[winner], responses[loser])] += 1
    assert name == "pandalm"
    assert texts(found) == expected
    # Ties: 85 of three, 13 and 7 of two. In six rows a response is true or false; one row (466) has no instruction.
    assert counts == {"rows": 999, "tie": 85 + 13 + 7, "empty": 52 + 1, "not_text": 6}
    assert len(found) == 999 - 105 - 53 - 6


@pytest.mark.parametrize(
    ("file", "n_first", "n_second"),
    [
        ("Natural", 42, 58),
        ("Adversarial_Neighbor", 75, 59),
        ("Adversarial_GPTInst", 45, 47),
        ("Adversarial_GPTOut", 22, 25),
        ("Adversarial_Manual", 22, 24),
    ],
)
def test_llmbar(shared_data, file, n_first, n_second):
    path = shared_data / "llmbar" / f"{file}.jsonl.gz"
    name, found, counts = read(path)
    rows = lines(path)
    assert name == "llmbar"
    assert counts == {"rows": n_first + n_second}
    assert sum(pair.chosen[0]["content"] == row["output_1"] for pair, row in zip(found, rows, strict=True)) == n_first
    assert [pair.prompt[0]["content"] for pair in found] == [row["input"] for row in rows]


def test_qa_feedback(shared_data):
    path = shared_data / "qa_feedback" / "dev_feedback.jsonl.gz"
    name, found, counts = read(path, train_split="dev")
    expected = Counter()
    for row in lines(path):
        for place, (i, j) in enumerate([(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]):
            if verdict := row["preference"][place]:
                better, worse = (i, j) if verdict == 1 else (j, i)
                expected[(row["question"], row[f"prediction {better}"], row[f"prediction {worse}"])] += 1
    assert name == "qa_feedback"
    assert Counter((prompt[0].split("\n\n")[0], *rest) for prompt, *rest in texts(found).elements()) == expected
    # 3000 comparisons, 384 of them ties; 12 rows are nothing but ties.
    assert (len(found), counts) == (3000 - 384, {"rows": 500, "tie": 12})
    prompt = found[0].prompt[0]["content"]
    assert prompt.startswith(
        "When does bloom by troye sivan come out?\n\nBloom (Troye Sivan album)\nBloom (Troye Sivan album)\n\n"
    )


def test_gsm8k_solutions(shared_data):
    path = shared_data / "gsm8k" / "example_model_solutions.jsonl.gz"
    name, found, counts = read(path)
    expected = Counter()
    for row in lines(path):
        solutions = [row[f"{size}_{kind}"] for size in ("6b", "175b") for kind in ("finetuning", "verification")]
        for right, wrong in itertools.product(solutions, solutions):
            if right["is_correct"] and not wrong["is_correct"]:
                expected[((row["question"],), right["solution"], wrong["solution"])] += 1
    assert name == "graded_solutions"
    assert texts(found) == expected
    assert (len(found), counts) == (2429, {"rows": 1319, "tie": 588})


@pytest.mark.parametrize(("file", "n_rows"), [("user_oriented_instructions", 252), ("seed_tasks", 175)])
def test_self_instruct(shared_data, file, n_rows):
    path = shared_data / "self_instruct" / f"{file}.jsonl.gz"
    name, found, counts = read(path, INSTRUCTION_LAYOUTS)
    expected = [instance["output"] for row in lines(path) for instance in row["instances"]]
    assert name == "self_instruct"
    assert counts == {"rows": n_rows}
    assert [example.completion[0]["content"] for example in found] == expected
