"""Votes from files that the page saved, and from the database of `posttrain ab serve`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from posttrain.errors import UserError
from posttrain.feedback.ballots import Ballot, Vote
from posttrain.feedback.vote_store import VoteStore

SQLITE = b"SQLite format 3\0"


def read_ballots(files: Iterable[Path]) -> list[Ballot]:
    """Return the ballots in some files. If a person voted twice on a prompt, the later file counts.

    Raises:
        UserError: a file contains no votes, or they are about the answers of several runs.
    """
    found: dict[tuple[str, str], dict[str, Vote]] = {}
    files = list(files)
    for file in files:
        for ballot in _read(file):
            found.setdefault((ballot.answers, ballot.rater or file.name), {}).update(ballot.choices)
    ballots = [Ballot(answers=answers, rater=rater, choices=votes) for (answers, rater), votes in found.items()]
    voted = [ballot for ballot in ballots if ballot.choices]
    if not voted:
        raise UserError(f"{', '.join(map(str, files))}: nothing was chosen: choose an answer for at least one prompt")
    return voted


def the_answers(ballots: Sequence[Ballot]) -> str:
    """Return the digest of the answers that all ballots are about.

    Raises:
        UserError: they are about the answers of several runs.
    """
    digests = sorted({ballot.answers for ballot in ballots})
    if len(digests) > 1:
        raise UserError(
            f"these votes are about the answers of {len(digests)} runs: pass the files of one run, or name it with --run"
        )
    return digests[0]


def _read(file: Path) -> list[Ballot]:
    try:
        content = file.read_bytes()
        if content.startswith(SQLITE):
            return VoteStore(file).ballots()
        return [Ballot.model_validate(json.loads(content))]
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        raise UserError(
            f"{file}: contains no choices: pass the file that the button on the page saves, or the database of posttrain ab serve"
        ) from error
