"""SFT against DPO, judged by people: a page with pairs of answers, and the win rate from the choices that people save.

The id of a prompt decides which model's answer is on the left. So neither the page nor the choices name the models, and no other
file is needed to compute the win rate.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.answers.judge import WinRate, win_rate
from posttrain.reporting.html import render

Choice = Literal["left", "right", "tie"]


class Choices(BaseModel):
    """The choices that one person saved."""

    model_config = ConfigDict(extra="forbid")

    answers: str
    """Digest of the answers that were compared."""
    choices: dict[str, Choice]
    """By the id of the exchange."""


def ab_page(generations: Generations) -> str:
    """Return a page that asks which of two answers is better, with shuffled sides and unnamed models. It works from a file.

    Raises:
        UserError: no prompt has answers of both SFT and DPO.
    """
    both = [exchange for exchange in generations.exchanges if {"sft", "dpo"} <= exchange.responses.keys()]
    if not both:
        raise UserError(
            "the run has no prompts that both SFT and DPO answered: train both stages with evaluation.generations.n above 0"
        )
    contests = []
    for exchange in both:
        left, right = ("dpo", "sft") if dpo_is_left(exchange.id) else ("sft", "dpo")
        contests.append(
            {
                "id": exchange.id,
                "prompt": "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in exchange.prompt),
                "left": exchange.responses[left].text,
                "right": exchange.responses[right].text,
            }
        )
    return render("choices.html.jinja", title="Which answer is better?", contests=contests, digest=digest(generations))


def ab_score(generations: Generations, files: Sequence[Path], confidence: float = 0.95) -> WinRate:
    """Return how often people preferred DPO's answer. A prompt that several people judged counts once, with their mean.

    Raises:
        UserError: a file contains no choices, or choices between the answers of another run.
    """
    scores: defaultdict[str, list[float]] = defaultdict(list)
    known = {exchange.id for exchange in generations.exchanges}
    for file in files:
        try:
            found = Choices.model_validate(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError) as error:
            raise UserError(f"{file}: contains no choices: pass the file that the button on the page saves") from error
        if found.answers != digest(generations) or not found.choices.keys() <= known:
            raise UserError(f"{file}: was made with the page of another run: name that run with --run")
        for name, choice in found.choices.items():
            scores[name].append(0.5 if choice == "tie" else float((choice == "left") == dpo_is_left(name)))
    if not scores:
        raise UserError(f"{', '.join(map(str, files))}: nothing was chosen: choose an answer for at least one prompt")
    return win_rate([sum(found) / len(found) for found in scores.values()], confidence)


def dpo_is_left(exchange: str) -> bool:
    """Return whether DPO's answer is on the left: pseudo-random, and always the same for an exchange."""
    return hashlib.sha256(f"ab {exchange}".encode()).digest()[0] % 2 == 0


def digest(generations: Generations) -> str:
    """Return the sha256 of all answers."""
    texts = [[e.id, {stage: response.text for stage, response in e.responses.items()}] for e in generations.exchanges]
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
