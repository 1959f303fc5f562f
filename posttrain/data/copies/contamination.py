"""Detects prompts of evaluation sets in the training data, which would inflate the results on these sets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from posttrain.config import Source
from posttrain.data.checks import Unusable
from posttrain.data.copies.near_duplicates import words
from posttrain.data.formats import (
    INSTRUCTION_LAYOUTS,
    PREFERENCE_LAYOUTS,
    check_columns,
    find_layout,
    prepare,
    read_rows,
    rename,
)
from posttrain.data.formats.turns import as_turns
from posttrain.data.rows import Turn
from posttrain.data.sources import open_source
from posttrain.errors import UserError

N_WORDS = 8
MIN_SHARE = 0.5
"""A row contains a prompt if one of its texts has at least this share of the prompt's n-grams of `N_WORDS` words."""
N_HEAD_ROWS = 64


class EvaluationPrompts:
    """An index of the prompts of evaluation sets.

    Source: Lambert et al. 2024 (Tulu 3), section 3.2, for 8-grams and the share of one half.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        """Read the evaluation sets.

        Raises:
            UserError: a set is missing or has no prompts.
        """
        self._runs: defaultdict[int, list[int]] = defaultdict(list)
        self._n_runs: list[int] = []
        self._short: set[tuple[str, ...]] = set()
        for source in sources:
            for prompt in _read_prompts(source):
                found = words([prompt])
                runs = _runs(found)
                if not runs:
                    self._short.add(tuple(found))
                for run in runs:
                    self._runs[run].append(len(self._n_runs))
                self._n_runs.append(len(runs))

    def are_in(self, texts: Iterable[str]) -> bool:
        """Return whether a text contains an evaluation prompt. A prompt of fewer than 8 words must equal the whole text."""
        for text in texts:
            found = words([text])
            if tuple(found) in self._short:
                return True
            hits = Counter(chain.from_iterable(self._runs.get(run, ()) for run in _runs(found)))
            if any(n >= MIN_SHARE * self._n_runs[prompt] for prompt, n in hits.items()):
                return True
        return False


def _runs(found: Sequence[str]) -> set[int]:
    return {hash(run) for run in zip(*(found[i:] for i in range(N_WORDS)), strict=False)}


def _read_prompts(source: Source) -> Iterator[str]:
    """Yield the last user turn of each readable row."""
    records = open_source(source).read()
    head = list(islice(records, N_HEAD_ROWS))
    rows = [rename(record.values, source.columns) for record in head if record.values is not None]
    if not rows:
        raise UserError(
            f"{source.path}: has no readable row, so contamination cannot be checked: correct data.contamination"
        )
    check_columns(source, [record.values for record in head if record.values is not None])
    every = (rename(record.values, source.columns) for record in chain(head, records) if record.values is not None)
    prompts: Iterator[list[Turn]]
    if any("prompt" in values for values in rows):
        prompts = (_as_prompt(values.get("prompt")) for values in every)
    else:
        _, layout = find_layout(source, rows, {**PREFERENCE_LAYOUTS, **INSTRUCTION_LAYOUTS})
        found = read_rows(source, layout, ((None, prepare(layout, values)) for values in every))
        prompts = (item.prompt for _, items in found for item in items if not isinstance(item, Unusable))
    n_found = 0
    for turns in prompts:
        asked = [turn["content"] for turn in turns if turn["role"] == "user" and turn["content"].strip()]
        if asked:
            n_found += 1
            yield asked[-1]
    if not n_found:
        raise UserError(
            f"{source.path}: has no prompts, so contamination cannot be checked: set the column of prompts in `columns`"
        )


def _as_prompt(value: Any) -> list[Turn]:
    try:
        return as_turns(value, "user")
    except Unusable:
        return []
