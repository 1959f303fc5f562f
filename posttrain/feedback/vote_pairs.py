"""Votes as preference pairs that a run can train on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import Exchange, Generations
from posttrain.feedback.ballots import Ballot
from posttrain.feedback.vote_score import check_answers, votes_by_prompt


@dataclass(frozen=True)
class VotedPairs:
    """Preference rows, and how many prompts gave none."""

    rows: list[dict[str, Any]]
    n_ties: int
    """Number of prompts without a majority for one of the answers."""

    def jsonl(self) -> str:
        """Return the rows as JSON Lines."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


def voted_pairs(generations: Generations, ballots: Sequence[Ballot]) -> VotedPairs:
    """Return a row for each prompt on which more people prefer one answer than the other or neither.

    Raises:
        UserError: the votes are about the answers of another run, or no prompt has a majority.
    """
    check_answers(generations, ballots)
    votes = votes_by_prompt(ballots, "choice")
    rows = list(_rows(generations.exchanges, votes))
    if not rows:
        raise UserError(f"none of the {len(votes)} prompts with votes has a majority for one of the answers")
    return VotedPairs(rows, len(votes) - len(rows))


def _rows(exchanges: Sequence[Exchange], votes: dict[str, list[float]]) -> Iterator[dict[str, Any]]:
    for exchange in exchanges:
        found = votes.get(exchange.id, [])
        n_dpo, n_sft, n_ties = (found.count(value) for value in (1.0, 0.0, 0.5))
        if max(n_dpo, n_sft) <= max(min(n_dpo, n_sft), n_ties):
            continue
        chosen, rejected = ("dpo", "sft") if n_dpo > n_sft else ("sft", "dpo")
        yield {
            "prompt": exchange.prompt,
            "chosen": [{"role": "assistant", "content": exchange.responses[chosen].text}],
            "rejected": [{"role": "assistant", "content": exchange.responses[rejected].text}],
            "annotators_agree": max(n_dpo, n_sft) / len(found),
        }
