"""The demo's hidden reward as a judge, for `collect.judge` and `evaluation.judge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from posttrain.data.demo.pairs import reward


def score(prompt: Sequence[Mapping[str, Any]], answer: str) -> float:
    """Return the hidden reward of an answer (`collect.judge.score_function`)."""
    return reward(prompt[-1]["content"], answer)


def compare(prompt: Sequence[Mapping[str, Any]], first: str, second: str) -> Literal["first", "second", "tie"]:
    """Return which answer has the higher hidden reward (`collect.judge.function`, `evaluation.judge.function`)."""
    difference = score(prompt, first) - score(prompt, second)
    return "tie" if difference == 0 else "first" if difference > 0 else "second"
