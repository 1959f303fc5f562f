"""Checks that compare rows with each other: leaks between splits, duplicates and conflicts."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from posttrain.data.copies.near_duplicates import Sketches, find_near, words
from posttrain.data.profile import DataProfile, Gatherer
from posttrain.data.report import Tally, printable
from posttrain.data.rows import SPLITS, Turn, canonical
from posttrain.data.splits import prompt_key
from posttrain.data.spool import SplitFiles, Spool, lean_rows

# A prompt that occurs in several splits belongs to the first of these.
OWNERS = ("test", "validation", "train")
TEST, VALIDATION, TRAIN = range(3)
LEAKS = {TEST: "prompt_in_test", VALIDATION: "prompt_in_validation"}
NEAR_LEAKS = {TEST: "near_test", VALIDATION: "near_validation"}


class Pool:
    """Rows with marks for the problems found by comparing them. Their text is kept on disk."""

    def __init__(self, schema: pa.Schema, columns: Sequence[str], folder: Path, tally: Tally) -> None:
        """Create an empty pool.

        Args:
            schema: of the finished rows.
            columns: the columns with messages: the prompt, then each response.
            folder: for temporary files; may be deleted after `sort`.
            tally: counts the outcome of each row.
        """
        self._schema, self._columns, self._folder, self._tally = schema, list(columns), folder, tally
        extra = [pa.field("where", pa.string()), pa.field("annotators_agree", pa.float64())]
        self._spool = Spool(pa.schema([*schema, *extra]), folder / "rows.arrow")
        self.has_annotators = False
        """Whether any row gives the share of annotators who agree."""
        self._prompts: dict[bytes, int] = {}
        self._prompt_rows = array("q")  # first row of each prompt, or -1-i for row i of the held-out rows
        self._held_out: Dataset | None = None
        self._row_prompts, self._codes, self._sources = array("q"), array("b"), array("i")
        self._pairs: list[bytes] = []
        self._swapped: list[bytes] = []
        self._prompt_sketches, self._row_sketches = Sketches(), Sketches()
        self._new_prompts: list[list[str]] = []
        self._new_rows: list[list[str]] = []

    def hold_out(self, rows: Dataset) -> None:
        """Set rows whose prompts no row of the pool may have; they count as prompts of the test split."""
        self._held_out = rows
        for i, prompt in enumerate(rows["prompt"]):
            self._add_prompt(prompt_key(prompt), prompt, -1 - i)
        self.n_held_out = len(self._prompts)

    def add(self, row: dict[str, Any], split: str) -> None:
        """Add a row: the columns of the schema, `where`, and `annotators_agree` if it is known."""
        i = self._spool.n_rows
        key = prompt_key(row["prompt"])
        prompt = self._add_prompt(key, row["prompt"], i)
        responses = [canonical(row[name]) for name in self._columns[1:]]
        self._row_prompts.append(prompt)
        self._codes.append(OWNERS.index(split))
        self._sources.append(self._tally.n_sources - 1)
        self._pairs.append(_identity(key, responses))
        self._swapped.append(_identity(key, responses[::-1]))
        self._new_rows.append([word for name in self._columns for word in _words(row[name])])
        self.has_annotators |= row.get("annotators_agree") is not None
        self._spool.add({**row, "where": printable(row["where"]), "source": printable(row["source"])})
        if len(self._new_rows) == 1000:
            self._sketch()

    def _add_prompt(self, key: bytes, prompt: list[Turn], row: int) -> int:
        if key not in self._prompts:
            self._prompts[key] = len(self._prompts)
            self._prompt_rows.append(row)
            self._new_prompts.append(_words(prompt))
        return self._prompts[key]

    def _sketch(self) -> None:
        self._prompt_sketches.add(self._new_prompts)
        self._row_sketches.add(self._new_rows)
        self._new_prompts, self._new_rows = [], []

    def finish(self) -> None:
        """Finish adding rows, so that they can be marked."""
        self._sketch()
        self._spool.finish()
        n = self._spool.n_rows
        self.reasons: list[str | None] = [None] * n
        """Reason for which each row is dropped; None if it is kept so far."""
        self._flags: dict[int, list[str]] = {}
        self._likes: dict[int, int] = {}
        self._row_prompt = np.frombuffer(self._row_prompts, np.int64) if n else np.empty(0, np.int64)
        self._code = np.frombuffer(self._codes, np.int8) if n else np.empty(0, np.int8)
        self._owner = np.full(len(self._prompts), TRAIN, np.int8)
        if self._held_out is not None:
            self._owner[: self.n_held_out] = TEST
        np.minimum.at(self._owner, self._row_prompt, self._code)

    def _mark(self, row: int, reason: str, like: int | None = None) -> None:
        if self._tally.policy(reason) == "keep":
            self._flags.setdefault(row, []).append(reason)
        else:
            self.reasons[row] = reason
        if like is not None:
            self._likes[row] = like

    def _staying(self) -> list[int]:
        return [i for i, reason in enumerate(self.reasons) if reason is None]

    def mark_leaks(self, exact: dict[int, str], near: dict[int, str], threshold: float) -> None:
        """Mark rows whose prompt, or a near copy of it, belongs to an earlier split in `OWNERS`.

        Args:
            exact, near: the reason by the split that owns the prompt, for equal prompts and near copies.
            threshold: minimum Jaccard similarity of near copies.
        """
        for i in np.flatnonzero(self._owner[self._row_prompt] < self._code).tolist():
            self._mark(i, exact[int(self._owner[self._row_prompt[i]])])
        owners: dict[int, tuple[int, int]] = {}
        for owner in near:
            candidates = self._prompt_sketches.copies(self._owner == owner)
            candidates = candidates[self._owner[candidates[:, 0]] > owner]
            for prompt, like in find_near(candidates, self._prompt_words, threshold).items():
                owners.setdefault(prompt, (owner, like))
        for i in self._staying() if owners else ():
            if (found := owners.get(int(self._row_prompt[i]))) is not None and self._code[i] > found[0]:
                self._mark(i, near[found[0]], like=int(self._prompt_rows[found[1]]))

    def _prompt_words(self, prompt: int) -> list[list[str]]:
        row = self._prompt_rows[prompt]
        if row >= 0:
            return [_words(self._spool.row(row, ["prompt"])["prompt"])]
        assert self._held_out is not None
        return [_words(self._held_out[-1 - row]["prompt"])]

    def mark_repeats(self) -> None:
        """Mark kept rows that contradict or repeat another kept row."""
        staying = self._staying()
        pairs = {self._pairs[i] for i in staying}
        seen = set()
        for i in staying:
            if self._pairs[i] != self._swapped[i] and self._swapped[i] in pairs:
                self._mark(i, "conflicting")
            elif self._pairs[i] in seen:
                self._mark(i, "duplicate")
            seen.add(self._pairs[i])

    def mark_near_repeats(self, threshold: float) -> None:
        """Mark kept rows that are near copies, in every part, of an earlier kept row of their split."""
        group = np.full(len(self._code), -1, np.int8)
        staying = [i for i in self._staying() if "duplicate" not in self._flags.get(i, ())]
        group[staying] = self._code[staying]
        candidates = self._row_sketches.repeats(group)
        parts = lru_cache(maxsize=4096)(
            lambda i: [_words(part) for part in self._spool.row(i, self._columns).values()],
        )
        for i, like in find_near(candidates, parts, threshold).items():
            self._mark(i, "near_duplicate", like=like)

    def mark_where(self, reason: str, is_so: Callable[[dict[str, Any]], bool], is_held_out_free: bool = False) -> None:
        """Mark kept rows by a condition on their content.

        Args:
            reason: one of `REASONS`.
            is_so: the condition, called with the row.
            is_held_out_free: skip the test split.
        """
        start = 0
        for batch in self._spool.batches():
            for i, row in enumerate(lean_rows(batch), start=start):
                if self.reasons[i] is None and not (is_held_out_free and self._code[i] == TEST) and is_so(row):
                    self._mark(i, reason)
            start += batch.num_rows

    def staying_to_train(self) -> tuple[list[int], list[int], list[bytes]]:
        """Return the positions, source indices and content keys of the kept training rows."""
        staying = [i for i in self._staying() if self._code[i] == TRAIN]
        return staying, [self._sources[i] for i in staying], [self._pairs[i] for i in staying]

    def mark(self, rows: Iterable[int], reason: str) -> None:
        """Mark rows for a reason."""
        for row in rows:
            self._mark(row, reason)

    def sort(self) -> tuple[dict[str, pa.Table], DataProfile]:
        """Return the kept rows of each split, in the order of adding, and their profile.

        Dropped rows are counted in the tally. The pool cannot be used afterwards.
        """
        files, gatherer = SplitFiles(self._schema, SPLITS, self._folder), Gatherer(self._columns)
        start = 0
        for batch in self._spool.batches():
            rows = range(start, start + batch.num_rows)
            for i in rows:
                self._count(i)
            stays = np.array([self.reasons[i] is None for i in rows], bool)
            masks = {name: stays & (self._code[rows.start : rows.stop] == OWNERS.index(name)) for name in SPLITS}
            files.write(batch.select(self._schema.names), masks)
            gatherer.add(batch.filter(pa.array(stays)))
            start += batch.num_rows
        self._spool.release()
        return files.tables(), gatherer.figures()

    def _count(self, i: int) -> None:
        found = [*self._flags.get(i, ()), *filter(None, [self.reasons[i]])]
        for reason in found:
            row: dict[str, Any] = {"where": ""}
            if self._tally.wants_example(reason):
                row = self._spool.row(i, ["where", *self._columns])
                if (like := self._likes.get(i)) is not None and reason.startswith("near"):
                    row["like"] = self._spool.row(like, ["where"])["where"] if like >= 0 else "a held-out row"
            where = row.pop("where")
            if reason == self.reasons[i]:
                self._tally.drop(reason, where, _shown(row), self._sources[i])
            else:
                self._tally.flag(reason, where, _shown(row))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row for display: the last message of each part."""
    return {name: value[-1]["content"] if isinstance(value, list) else value for name, value in row.items()}


def _words(turns: list[Turn]) -> list[str]:
    return words([text for turn in turns for text in ([turn["content"]] if len(turn) == 2 else _texts(turn))])


def _texts(turn: Turn) -> list[str]:
    """Return the texts of a turn that has more than a role and a content."""
    texts = (turn["content"], turn.get("reasoning_content"), turn.get("tool_calls"))
    return [text for text in texts if text]


def _identity(key: bytes, responses: Sequence[bytes]) -> bytes:
    return hashlib.blake2b(key + b"\0".join(responses), digest_size=16).digest()
