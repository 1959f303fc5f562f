"""Held-out prompts stay held out as the data grows: neither they nor near copies of them are used for training."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from posttrain.config import DataSection
from posttrain.data.copies.near_duplicates import Sketches, find_near, similarity, words
from posttrain.data.loader import load_preferences
from posttrain.data.splits import choose_split, prompt_key

THRESHOLD = 0.8
WORDS = [f"word{i}" for i in range(2000)]


def variants(rng: random.Random, n: int, length: int, n_changed: int) -> list[str]:
    """Return prompts from one template with some words replaced: some are near copies, most are slightly below the threshold."""
    template = [rng.choice(WORDS) for _ in range(length)]
    found = []
    for _ in range(n):
        prompt = list(template)
        for place in rng.sample(range(length), rng.randint(0, n_changed)):
            prompt[place] = rng.choice(WORDS)
        found.append(" ".join(prompt))
    return found


def chain(rng: random.Random, n: int) -> list[str]:
    """Return a chain of prompts: each is a near copy of the next, but the first and the last have no words in common."""
    text = [rng.choice(WORDS) for _ in range(40)]
    found = []
    for i in range(n):
        text = list(text)
        text[i % 40] = rng.choice(WORDS)
        found.append(" ".join(text))
    return found


def new_rows(rng: random.Random) -> list[dict[str, str]]:
    """Return prompts of old and new clusters in capitals, with another full stop, and with the answers swapped."""
    prompts = (
        variants(rng, 25, 30, 4) + chain(rng, 25) + [f"{rng.choice(WORDS)} {rng.choice(WORDS)}" for _ in range(10)]
    )
    rows = [
        {"prompt": prompt, "chosen": f"Yes {rng.random()}.", "rejected": f"No {rng.random()}."} for prompt in prompts
    ]
    rows += [
        {**row, "prompt": rng.choice((row["prompt"].upper(), f"{row['prompt']}."))} for row in rng.sample(rows, 15)
    ]
    return rows + [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rng.sample(rows, 5)]


@pytest.mark.parametrize("seed", range(4))
def test_test_prompts_are_never_in_training_as_data_grows(tmp_path: Path, seed: int) -> None:
    rng, file = random.Random(seed), tmp_path / "pairs.jsonl"
    data = DataSection.model_validate(
        {"sources": [{"path": str(file)}], "test_size": 0.2, "validation_size": 0.1, "max_drop_share": 1.0}
    )
    rows: list[dict[str, str]] = []
    held_out: dict[bytes, str] = {}
    for stage in range(4):
        for row in new_rows(rng) + [{**row, "chosen": f"Well {stage}."} for row in rng.sample(rows, len(rows) // 10)]:
            rows.insert(rng.randint(0, len(rows)), row)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        preferences, report = load_preferences(data)
        there = {
            name: {prompt_key(prompt): prompt[-1]["content"] for prompt in split["prompt"]}
            for name, split in preferences.splits().items()
        }
        held_out |= there["test"]
        assert len(there["test"]) > 3
        assert not held_out.keys() & (there["train"].keys() | there["validation"].keys())
        tests = [words([text]) for text in held_out.values()]
        for text in there["train"].values():
            assert max(similarity(words([text]), test) for test in tests) < THRESHOLD, text
    assert report.dropped["near_test"] > 20


@pytest.mark.slow
def test_nearest_prompts_of_a_template_are_compared() -> None:
    """Comparing only with the first text that shares a band would miss a quarter of these."""
    rng = random.Random(0)
    prompts = variants(rng, 1500, 60, 10)
    keys = [prompt_key([{"role": "user", "content": prompt}]) for prompt in prompts]
    in_test = np.array([choose_split(key, 0, 0.05, 0.0) == "test" for key in keys])
    texts = [words([prompt]) for prompt in prompts]
    sketches = Sketches()
    sketches.add(texts)
    found = find_near(sketches.copies(in_test), lambda i: [texts[i]], THRESHOLD)
    tests = [texts[i] for i in np.flatnonzero(in_test)]
    trained = np.flatnonzero(~in_test).tolist()
    near = {i for i in trained if any(similarity(texts[i], test) >= THRESHOLD for test in tests)}
    assert len(near) > 200
    assert found.keys() <= near
    assert len(near - found.keys()) <= 0.01 * len(near)
