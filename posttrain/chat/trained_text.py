"""The first rows of each source as they are trained: the text of their tokens, and which of it is under the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from pydantic import BaseModel, ConfigDict

from posttrain.chat.findings import Findings
from posttrain.chat.template import Chat
from posttrain.chat.tokenise import EncodedRow, completions, encode_rows
from posttrain.data.stored import Preferences

N_LOOKED_THROUGH = 2000
"""Rows in which the first of each source are looked for."""


class TrainedPart(BaseModel):
    """A prompt or an answer as pieces of text, each with whether it is trained on."""

    model_config = ConfigDict(frozen=True)

    name: str
    """prompt, chosen or rejected."""
    pieces: list[tuple[str, bool]]
    n_tokens: int


class TrainedRow(BaseModel):
    """A pair as it is trained."""

    model_config = ConfigDict(frozen=True)

    where: str
    """Source and id."""
    parts: list[TrainedPart]


def first_rows(
    chat: Chat, preferences: Preferences, checks: Mapping[str, str], n: int = 2, *, loss_on_all: bool = False
) -> list[TrainedRow]:
    """Return the first `n` training rows of each source as the template renders them.

    Args:
        checks: policies of the checks, as in `data.checks`.
        loss_on_all: earlier answers in the prompt are trained on in SFT (`sft.loss_on: all`).
    """
    rows = preferences.train.select(range(min(N_LOOKED_THROUGH, len(preferences.train))))
    seen: dict[str, int] = {}
    chosen = []
    for i, source in enumerate(rows["source"]):
        seen[source] = seen.get(source, 0) + 1
        if seen[source] <= n:
            chosen.append(i)
    encoded = encode_rows(chat, rows.select(chosen), ("chosen", "rejected"), Findings(checks))
    return [
        TrainedRow(where=row.rendered.conversation.where, parts=list(_parts(chat, row, loss_on_all))) for row in encoded
    ]


def _parts(chat: Chat, row: EncodedRow, loss_on_all: bool) -> Iterator[TrainedPart]:
    earlier = [*completions(chat, row, loss_on_all)][-1].earlier
    flags = [any(start <= i < end for start, end in earlier) for i in range(len(row.prompt_ids))]
    yield _part(chat, "prompt", row.prompt_ids, flags)
    for name, ids in zip(("chosen", "rejected"), row.answers_ids, strict=True):
        yield _part(chat, name, ids, [True] * len(ids))


def _part(chat: Chat, name: str, ids: list[int], trained: list[bool]) -> TrainedPart:
    pieces = [
        (str(chat.tokenizer.decode([token for token, _ in group], clean_up_tokenization_spaces=False)), flag)
        for flag, group in groupby(zip(ids, trained, strict=True), key=lambda item: item[1])
    ]
    return TrainedPart(name=name, pieces=pieces, n_tokens=len(ids))
