"""Assigns prompts to splits by a hash of the prompt, so that adding data never moves a prompt to another split."""

from __future__ import annotations

import hashlib
import unicodedata

from posttrain.data.rows import Turn


def prompt_key(prompt: list[Turn]) -> bytes:
    """Return a 32-byte key that ignores case, white space and Unicode normalisation form."""
    normalised = "\n".join(
        f"{turn['role']}: {normalise(turn['content'])}{_calls(turn) if len(turn) > 2 else ''}" for turn in prompt
    )
    return hashlib.sha256(normalised.encode()).digest()


def _calls(turn: Turn) -> str:
    """Return the tool calls of a turn, which tell apart prompts whose texts are the same."""
    calls = turn.get("tool_calls")
    return f"\n{normalise(calls)}" if calls else ""


def normalise(text: str) -> str:
    """Return text in Unicode form NFKC, case-folded, with each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def choose_split(key: bytes, seed: int, test_size: float, validation_size: float) -> str:
    """Return the split of a prompt.

    The key and the seed are hashed to a number between 0 and 1. Numbers below `test_size` are test, the next
    `validation_size` validation, and the rest train.
    """
    place = int.from_bytes(hashlib.sha256(f"{seed}:".encode() + key).digest()[:8]) / 2**64
    if place < test_size:
        return "test"
    return "validation" if place < test_size + validation_size else "train"
