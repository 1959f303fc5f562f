"""Whether rows hold the prompts of evaluation sets: trained on, they would make a model look better than it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from posttrain.config import Source
from posttrain.data.checks import Turn, Unusable
from posttrain.data.formats import (
    INSTRUCTION_LAYOUTS,
    PREFERENCE_LAYOUTS,
    check_columns,
    find_layout,
    read_rows,
    rename,
)
from posttrain.data.formats.layout import as_turns
from posttrain.data.near_duplicates import words
from posttrain.data.sources import open_source
from posttrain.errors import UserError

N_WORDS = 8
MIN_SHARE = 0.5
"""A row holds a prompt if at least this share of the prompt's runs of `N_WORDS` words are in one of its texts."""
N_HEAD_ROWS = 64


class EvaluationPrompts:
    """The prompts of evaluation sets, to be looked for in rows.

    Source: runs of 8 words and the share of one half are those of Lambert et al. 2024 (Tulu 3), section 3.2.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        """Reads the sets.

        Raises:
            UserError: one is missing or has no column that a prompt could be in.
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
        """Whether one of the texts holds one of the prompts; a prompt under 8 words must be the whole text."""
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
    """The last thing that the user says in each row that can be read."""
    records = open_source(source).read()
    head = list(islice(records, N_HEAD_ROWS))
    rows = [rename(record.values, source.columns) for record in head if record.values is not None]
    if not rows:
        raise UserError(f"{source.path}: has no readable row, so nothing can be looked for: correct data.contamination")
    check_columns(source, [record.values for record in head if record.values is not None])
    every = (rename(record.values, source.columns) for record in chain(head, records) if record.values is not None)
    prompts: Iterator[list[Turn]]
    if any("prompt" in values for values in rows):
        prompts = (_as_prompt(values.get("prompt")) for values in every)
    else:
        _, layout = find_layout(source, rows, {**PREFERENCE_LAYOUTS, **INSTRUCTION_LAYOUTS})
        found = read_rows(source, layout, ((None, values) for values in every))
        prompts = (item.prompt for _, items in found for item in items if not isinstance(item, Unusable))
    n_found = 0
    for turns in prompts:
        asked = [turn["content"] for turn in turns if turn["role"] == "user" and turn["content"].strip()]
        if asked:
            n_found += 1
            yield asked[-1]
    if not n_found:
        raise UserError(f"{source.path}: holds no prompt, so nothing can be looked for: name its column with `columns`")


def _as_prompt(value: Any) -> list[Turn]:
    try:
        return as_turns(value, "user")
    except Unusable:
        return []
