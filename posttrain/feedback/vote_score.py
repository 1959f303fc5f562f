"""How often people preferred DPO's answer, and how far they agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.errors import UserError
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.answers.judge import WinRate, win_rate
from posttrain.evaluation.clusters import Clusters, conversation_key
from posttrain.feedback.ab import digest, for_dpo
from posttrain.feedback.ballots import QUESTIONS, Ballot


@dataclass(frozen=True)
class VoteScore:
    """The outcome of a blind test."""

    overall: WinRate
    """Of DPO over SFT. A prompt on which several people voted counts once, with their mean."""
    questions: dict[str, WinRate]
    """The same for each further question that somebody answered, by the field of `Vote`."""
    agreement: float | None
    """Krippendorff's alpha of the choices: 1 is full agreement, 0 what chance gives. None if no prompt has two votes, or all votes
    are the same."""
    n_raters: int
    n_votes: int


def ab_score(generations: Generations, ballots: Sequence[Ballot], confidence: float = 0.95) -> VoteScore:
    """Return how often people preferred DPO's answer.

    Raises:
        UserError: the votes are about the answers of another run.
    """
    check_answers(generations, ballots)
    by_question = {"choice": votes_by_prompt(ballots, "choice")}
    by_question |= {name: found for name in QUESTIONS if (found := votes_by_prompt(ballots, name))}
    keys = {exchange.id: conversation_key(exchange.prompt) for exchange in generations.exchanges}
    rates = {
        name: win_rate(
            [sum(votes) / len(votes) for votes in found.values()], confidence, Clusters.of([keys[id] for id in found])
        )
        for name, found in by_question.items()
    }
    choices = by_question["choice"]
    return VoteScore(
        overall=rates.pop("choice"),
        questions=rates,
        agreement=krippendorff_alpha(choices.values()),
        n_raters=len({ballot.rater for ballot in ballots}),
        n_votes=sum(map(len, choices.values())),
    )


def check_answers(generations: Generations, ballots: Sequence[Ballot]) -> None:
    """Check that votes are about these answers.

    Raises:
        UserError: they are not.
    """
    known, expected = {exchange.id for exchange in generations.exchanges}, digest(generations)
    if any(ballot.answers != expected or not ballot.choices.keys() <= known for ballot in ballots):
        raise UserError("the votes were made with the page of another run: name that run with --run")


def votes_by_prompt(ballots: Iterable[Ballot], question: str) -> dict[str, list[float]]:
    """Return for each prompt all votes on a question: 1 for DPO, 0 for SFT, one half for a tie."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for ballot in ballots:
        for id, vote in ballot.choices.items():
            if (choice := getattr(vote, question)) is not None:
                found[id].append(for_dpo(id, choice))
    return dict(found)


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Return Krippendorff's alpha with the interval metric, in which a tie lies halfway between the two choices.

    Args:
        units: values of each unit, by as many raters as judged it.

    Source: Krippendorff 2011, Computing Krippendorff's alpha-reliability: 1 - observed disagreement / expected disagreement.
    """
    judged = [np.array(values, dtype=np.float64) for values in units if len(values) > 1]
    if not judged:
        return None
    everything = np.concatenate(judged)
    n = len(everything)
    observed = sum(_differences(values) / (len(values) - 1) for values in judged) / n
    expected = _differences(everything) / (n * (n - 1))
    return None if expected == 0 else float(1 - observed / expected)


def _differences(values: np.ndarray) -> float:
    """Return the sum of squared differences over all ordered pairs."""
    return float(2 * (len(values) * (values**2).sum() - values.sum() ** 2))
