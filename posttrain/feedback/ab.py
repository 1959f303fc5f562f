"""SFT against DPO, judged by people: the pairs of answers, and the page on which people choose.

The id of a prompt decides which model's answer is on the left. So neither the page nor the votes name the models, and no other
file is needed to compute the win rate.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import Exchange, Generations
from posttrain.feedback.ballots import LONGEST_COMMENT, QUESTIONS, Choice
from posttrain.reporting.html import render


@dataclass(frozen=True)
class ShownPair:
    """Two answers to a prompt that are shown side by side."""

    id: str
    prompt: str
    left: str
    right: str


def shown_pairs(generations: Generations) -> list[ShownPair]:
    """Return the pairs that people see: those of SFT and DPO that differ, with shuffled sides.

    Raises:
        UserError: no prompt has different answers of both SFT and DPO.
    """
    both = answered_by_both(generations)
    different = [exchange for exchange in both if _text(exchange, "sft") != _text(exchange, "dpo")]
    if not different:
        raise UserError(
            f"SFT and DPO gave the same answer to all {len(both)} prompts, so there is nothing to choose"
            if both
            else "the run has no prompts that both SFT and DPO answered: train both stages with evaluation.generations.n above 0"
        )
    pairs = []
    for exchange in different:
        left, right = ("dpo", "sft") if dpo_is_left(exchange.id) else ("sft", "dpo")
        prompt = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in exchange.prompt)
        pairs.append(ShownPair(exchange.id, prompt, _text(exchange, left), _text(exchange, right)))
    return pairs


def answered_by_both(generations: Generations) -> list[Exchange]:
    """Return the exchanges in which both SFT and DPO answered."""
    return [exchange for exchange in generations.exchanges if {"sft", "dpo"} <= exchange.responses.keys()]


def ab_page(generations: Generations, *, is_served: bool = False) -> str:
    """Return a page that asks which of two answers is better, with shuffled sides and unnamed models.

    Args:
        is_served: whether the page sends each vote to where it came from. Otherwise it works from a file and saves a file.

    Raises:
        UserError: no prompt has different answers of both SFT and DPO.
    """
    pairs = shown_pairs(generations)
    return render(
        "choices.html.jinja",
        title="Which answer is better?",
        pairs=pairs,
        n_same=len(answered_by_both(generations)) - len(pairs),
        questions=QUESTIONS,
        longest_comment=str(LONGEST_COMMENT),
        digest=digest(generations),
        is_served=is_served,
    )


def for_dpo(exchange: str, choice: Choice) -> float:
    """Return 1 if a choice prefers DPO's answer, 0 if SFT's, and one half for a tie."""
    return 0.5 if choice == "tie" else float((choice == "left") == dpo_is_left(exchange))


def dpo_is_left(exchange: str) -> bool:
    """Return whether DPO's answer is on the left: pseudo-random, and always the same for an exchange."""
    return hashlib.sha256(f"ab {exchange}".encode()).digest()[0] % 2 == 0


def digest(generations: Generations) -> str:
    """Return the sha256 of all answers."""
    texts = [[e.id, {stage: response.text for stage, response in e.responses.items()}] for e in generations.exchanges]
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def _text(exchange: Exchange, stage: str) -> str:
    return exchange.responses[stage].text
