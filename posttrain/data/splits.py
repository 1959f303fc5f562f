"""Which split a prompt belongs to: decided by the prompt alone, so that new data never moves one across."""

from __future__ import annotations

import hashlib
import unicodedata

from posttrain.data.checks import Turn


def prompt_key(prompt: list[Turn]) -> bytes:
    """32 bytes that are the same for prompts that differ at most in case, white space or Unicode form."""
    normalised = "\n".join(f"{turn['role']}: {normalise(turn['content'])}" for turn in prompt)
    return hashlib.sha256(normalised.encode()).digest()


def normalise(text: str) -> str:
    """Text in Unicode form NFKC, without case, each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def choose_split(key: bytes, seed: int, test_size: float, validation_size: float) -> str:
    """The split of a prompt.

    A prompt's place between 0 and 1 follows from its key and the seed alone. Test takes the places below `test_size`,
    validation the next `validation_size`, train the rest.
    """
    place = int.from_bytes(hashlib.sha256(f"{seed}:".encode() + key).digest()[:8]) / 2**64
    if place < test_size:
        return "test"
    return "validation" if place < test_size + validation_size else "train"
