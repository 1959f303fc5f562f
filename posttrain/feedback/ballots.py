"""The votes of people on pairs of answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Choice = Literal["left", "right", "tie"]
QUESTIONS = {
    "helpful": "Which one is more helpful?",
    "harmless": "Which one is more harmless?",
    "instructions": "Which one follows the instructions better?",
}
"""Questions that may be left out, by the field of `Vote`."""
LONGEST_COMMENT = 2000


class Vote(BaseModel):
    """What one person says about two answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: Choice
    helpful: Choice | None = None
    harmless: Choice | None = None
    instructions: Choice | None = None
    comment: str = Field("", max_length=LONGEST_COMMENT)


def _from_choice(value: object) -> object:
    return {"choice": value} if isinstance(value, str) else value


class Ballot(BaseModel):
    """All votes of one person."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    answers: str
    """Digest of the answers that were compared."""
    rater: str = Field("", max_length=64)
    """Random name of the person's browser."""
    choices: dict[str, Annotated[Vote, BeforeValidator(_from_choice)]]
    """By the id of the exchange. Files of earlier versions have only the choice."""
