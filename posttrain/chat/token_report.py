"""What the tokenizer makes of the pairs: how long they are, and what does not fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from datasets import Dataset
from pydantic import BaseModel, ConfigDict

from posttrain.chat.template import Chat
from posttrain.chat.tokenise import tokenise_pairs
from posttrain.config.check_policies import policy_of
from posttrain.data.preferences import Preferences
from posttrain.data.profile import CountHistogram, Counting, Share
from posttrain.errors import UserError
from posttrain.progress import progress_bar

PARTS = ("prompt", "chosen", "rejected")
BATCH_ROWS = 1000
N_EXAMPLES = 10
MAX_COUNTED = 5_000
"""Pairs from which on only every second, third and so on is counted, unless all must fit."""
UNBOUNDED = 2**40


class TokenReport(BaseModel):
    """How many tokens the pairs of all splits have, and what is lost of them. Responses count their stop token."""

    model_config = ConfigDict(frozen=True)

    template: str
    max_length: int
    max_prompt_length: int
    n_pairs: int
    n_counted: int
    """Pairs that were tokenised for this report, spread evenly over every split: all figures are of these."""
    lengths: dict[str, CountHistogram]
    """Of prompts, chosen and rejected responses before anything is cut off."""
    cut: dict[str, int]
    """Pairs by what happens to them: `posttrain.chat.tokenise.tokenise_pairs` says what each is."""
    n_tokens_lost: dict[str, int]
    """Tokens cut off prompts, chosen and rejected responses of pairs that are used."""
    n_stops_lost: dict[str, int]
    """Chosen and rejected responses that are used without their end of turn, so a model learns not to end there."""
    longer_is_chosen: Share | None
    """How often preferring the response with more tokens is right; without pairs of equal length."""
    examples: dict[str, list[str]]
    """Ids of a few pairs that are left out, and of a few that are cut."""


def report_tokens(
    chat: Chat, preferences: Preferences, max_length: int, max_prompt_length: int, policies: Mapping[str, str]
) -> TokenReport:
    """What becomes of the pairs as tokens.

    Args:
        policies: `data.checks`.

    Raises:
        UserError: a pair is cut or left out, and `truncated: fail` says that none may be.
    """

    def fits(of_pair: Mapping[str, int]) -> bool:
        response = max(of_pair["chosen"], of_pair["rejected"])
        return of_pair["prompt"] <= max_prompt_length and of_pair["prompt"] + response <= max_length

    lengths = {part: Counting() for part in PARTS}
    cut, lost, stops, favours = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    examples: dict[str, list[str]] = {"left_out": [], "cut": []}
    must_fit = policy_of("truncated", policies) == "fail"
    batches = list(_batches(preferences, preferences.n_pairs if must_fit else MAX_COUNTED))
    n_counted = sum(map(len, batches))
    with progress_bar(n_counted, "Counting tokens", " pairs") as bar:
        for rows in batches:
            found = tokenise_pairs(chat, rows, UNBOUNDED, UNBOUNDED)
            whole = _lengths(found.rows)
            for part in PARTS:
                lengths[part].add(np.array([of_pair[part] for of_pair in whole.values()], np.int64))
            favours.update(_favoured(of_pair["chosen"], of_pair["rejected"]) for of_pair in whole.values())
            # Only what does not fit needs to be tokenised as a stage would have it.
            long = [i for i, row_id in enumerate(rows["id"]) if row_id in whole and not fits(whole[row_id])]
            used = tokenise_pairs(chat, rows.select(long), max_length, max_prompt_length)
            cut.update(found.counts)
            cut.update(used.counts)
            kept = _lengths(used.rows)
            for row_id, of_pair in kept.items():
                lost.update({part: whole[row_id][part] - of_pair[part] for part in PARTS})
            for part in PARTS[1:]:
                stops[part] += sum(ids[-1] != chat.stop_id for ids in used.rows[f"{part}_ids"])
            examples["cut"] += list(kept)[: N_EXAMPLES - len(examples["cut"])]
            left_out = [i for i in rows["id"] if i not in whole] + [i for i in rows.select(long)["id"] if i not in kept]
            examples["left_out"] += left_out[: N_EXAMPLES - len(examples["left_out"])]
            bar.update(len(rows))
    if must_fit and any(cut.values()):
        counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in cut.items() if n)
        raise UserError(
            f"data.checks: truncated is fail, and of {n_counted} pairs {counts}, such as "
            f"{', '.join([*examples['left_out'], *examples['cut']][:3])}: raise dpo.max_length ({max_length}) or "
            f"dpo.max_prompt_length ({max_prompt_length}), lower data.max_chars, or say keep"
        )
    n_unequal = favours["longer"] + favours["shorter"]
    return TokenReport(
        template=chat.template,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        n_pairs=preferences.n_pairs,
        n_counted=n_counted,
        lengths={part: lengths[part].histogram() for part in PARTS},
        cut=dict(cut),
        n_tokens_lost={part: lost[part] for part in PARTS},
        n_stops_lost={part: stops[part] for part in PARTS[1:]},
        longer_is_chosen=Share.of(favours["longer"], n_unequal) if n_unequal else None,
        examples=examples,
    )


def _batches(preferences: Preferences, n_most: int) -> Iterator[Dataset]:
    step = max(1, math.ceil(preferences.n_pairs / max(n_most, 1)))
    for rows in preferences.splits().values():
        for start in range(0, len(rows), BATCH_ROWS * step):
            yield rows.select(range(start, min(start + BATCH_ROWS * step, len(rows)), step))


def _lengths(rows: Dataset) -> dict[str, dict[str, int]]:
    columns = [map(len, rows[f"{part}_ids"]) for part in PARTS]
    return {
        row_id: dict(zip(PARTS, of_pair, strict=True)) for row_id, *of_pair in zip(rows["id"], *columns, strict=True)
    }


def _favoured(chosen: int, rejected: int) -> str:
    return "longer" if chosen > rejected else "shorter" if chosen < rejected else "neither"
