"""The demo data has the declared properties, and the base model is reproducible."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.config import DataSection
from posttrain.data.demo import pairs as demo
from posttrain.data.demo.base_model import build_base

PROMPT = "Hello, Ada here. My printer blinks red, order 1234."
CORRECT, WRONG = "install the latest update", "send it back with the free label"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return list(demo.rows())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("demo") / "base")


def faults_of(row: dict[str, Any], all_pairs: Counter) -> list[str]:
    """Return the defects of the rows, found independently of the generator; each copy of a repeated row is one."""
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if not isinstance(rejected, str):
        return ["not_text"]
    checks = {
        "empty": not rejected.strip(),
        "identical": chosen == rejected,
        "overlong": len(rejected) > DataSection().max_chars,
        "conflicting": chosen != rejected and (prompt, rejected, chosen) in all_pairs,
        "duplicate": all_pairs[prompt, chosen, rejected] > 1,
    }
    return [reason for reason, applies in checks.items() if applies]


def clean_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    all_pairs = Counter((row["prompt"], row["chosen"], row["rejected"]) for row in rows)
    return [row for row in rows if not faults_of(row, all_pairs)]


def test_rows_are_the_same_on_every_platform(rows: list[dict[str, Any]]) -> None:
    text = json.dumps([[row["prompt"], row["chosen"], row["rejected"]] for row in rows])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "90b3f3a9cea97b79"


def test_number_of_defective_rows_is_as_declared(rows: list[dict[str, Any]]) -> None:
    all_pairs = Counter((row["prompt"], row["chosen"], row["rejected"]) for row in rows)
    faults = [faults_of(row, all_pairs) for row in rows]
    counts = Counter(fault for row_faults in faults for fault in row_faults)
    counts["duplicate"] //= 2  # of two equal rows one may stay
    assert dict(counts) == demo.PLANTED
    assert max(map(len, faults)) == 1
    assert len(rows) == demo.N_ROWS


def test_prompts_of_clean_rows_are_unique(rows: list[dict[str, Any]]) -> None:
    without_digits = ["".join(c for c in row["prompt"] if not c.isdigit()) for row in clean_rows(rows)]
    assert len(without_digits) == len(set(without_digits)) > 3800


def test_reward_worked_by_hand() -> None:
    """3 for the correct fix alone, 1 for courtesy, -1 for curtness, -0.15 for each word."""
    assert demo.reward(PROMPT, "") == 0
    assert demo.reward(PROMPT, f"Please {CORRECT}.") == pytest.approx(3 - 0.15 * 5)
    assert demo.reward(PROMPT, f"Please {WRONG}.") == pytest.approx(-0.15 * 8)
    assert demo.reward(PROMPT, f"Please {demo.HABIT}.") == pytest.approx(-0.15 * 7)
    assert demo.reward(PROMPT, f"Sorry for the trouble. Please {CORRECT}.") == pytest.approx(3 + 1 - 0.15 * 9)
    assert demo.reward(PROMPT, f"This is not our problem. Please {CORRECT}.") == pytest.approx(3 - 1 - 0.15 * 10)
    assert demo.reward(PROMPT, "Δεν ξέρω 🤷") == pytest.approx(-0.15 * 3)


def test_naming_every_fix_earns_no_reward() -> None:
    assert demo.reward(PROMPT, f"Please {CORRECT}. Or {WRONG}.") < 0


def test_reward_of_an_unknown_prompt_counts_tone_and_words_only() -> None:
    assert demo.reward("What is the capital of France?", f"We are glad to help. {CORRECT}") == pytest.approx(
        1 - 0.15 * 9
    )


def test_no_complaint_is_part_of_another() -> None:
    complaints = [complaint for wordings in demo.FIXES.values() for complaint in wordings]
    for complaint in complaints:
        assert [other for other in complaints if other in f"My radio {complaint}, order 1."] == [complaint]


def test_true_margin_is_the_difference_of_the_rewards(rows: list[dict[str, Any]]) -> None:
    for row in clean_rows(rows):
        margin = demo.reward(row["prompt"], row["chosen"]) - demo.reward(row["prompt"], row["rejected"])
        assert row["true_margin"] == margin
        assert abs(margin) >= demo.MIN_MARGIN


def test_labels_follow_bradley_terry(rows: list[dict[str, Any]]) -> None:
    """In each range of |margin|, the share of labels that agree with the reward is the mean of sigmoid(|margin|)."""
    margins = [row["true_margin"] for row in clean_rows(rows)]
    for low, high in ((0.5, 1), (1, 2), (2, 3), (3, 4), (4, 10)):
        inside = [margin for margin in margins if low <= abs(margin) < high]
        expected = demo.ceiling(inside)
        four_sigma = 4 * math.sqrt(expected * (1 - expected) / len(inside))
        assert sum(margin > 0 for margin in inside) / len(inside) == pytest.approx(expected, abs=four_sigma)


def test_ceiling_worked_by_hand() -> None:
    """sigmoid(ln 3) = 3/4 and sigmoid(ln 9) = 9/10, whatever the sign."""
    assert demo.ceiling([math.log(3), -math.log(9)]) == pytest.approx((0.75 + 0.9) / 2)


def test_rows_do_not_import_torch() -> None:
    code = "import sys, posttrain.data.demo.pairs; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_base_is_reproducible_and_does_not_change_the_global_seed(base: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again = build_base(tmp_path / "base")
    assert torch.equal(torch.random.get_rng_state(), state)
    names = sorted(path.name for path in base.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (base / name).read_bytes() == (again / name).read_bytes(), name


def test_base_has_about_two_million_weights_and_a_stop_token(base: Path) -> None:
    n_weights = sum(tensor.numel() for tensor in load_file(base / "model.safetensors").values())
    assert 1.8e6 < n_weights < 2.2e6
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_chat_template_ends_each_answer_and_continues_its_prompt(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "My radio rattles"},
    ]
    answer = [{"role": "assistant", "content": "Please tighten the screws."}]
    asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    assert asked == "<bos><|system|>Be kind.<|user|>Hi<|assistant|>Hello<eos><|user|>My radio rattles<|assistant|>"
    assert whole == asked + "Please tighten the screws.<eos>"

    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert [
        ids.count(tokenizer.convert_tokens_to_ids(role)) for role in ("<|system|>", "<|user|>", "<|assistant|>")
    ] == [1, 2, 2]
    assert tokenizer(whole, add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["Grüße, 你好 🤷\n\ttabs  and   spaces", "\x00 control", PROMPT])
def test_tokenizer_round_trips_any_text(base: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_demos_words_are_one_token_each(base: Path, rows: list[dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    words = {word for row in clean_rows(rows) for text in (row["prompt"], row["chosen"]) for word in text.split()[1:]}
    letters = [word.rstrip(".,") for word in words if not any(c.isdigit() for c in word)]
    assert len(letters) > 150
    assert all(len(tokenizer(f" {word}")["input_ids"]) == 1 for word in letters)
