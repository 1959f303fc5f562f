"""Statistics of the kept rows: lengths, turns, languages, annotator agreement and length bias."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

N_LANGUAGE_SAMPLES = 300
"""Number of rows of each source, from the start, whose language is detected."""


class CountHistogram(BaseModel):
    """Distribution of a count. Bin i > 0 covers the values from 2^(i-1) to 2^i - 1; bin 0 covers 0."""

    model_config = ConfigDict(frozen=True)

    counts: list[int]
    n: int
    mean: float
    max: int

    @classmethod
    def of(cls, counts: np.ndarray, n: int, total: int, largest: int) -> CountHistogram:
        """Return the histogram of counts, without empty bins at the end."""
        return cls(counts=np.trim_zeros(counts, "b").tolist(), n=n, mean=total / n if n else 0.0, max=largest)


class Counting:
    """Accumulates a histogram."""

    def __init__(self) -> None:
        self._counts = np.zeros(65, np.int64)
        self._total = self._largest = 0

    def add(self, values: np.ndarray) -> None:
        """Add non-negative integers."""
        if len(values):
            bins = np.ceil(np.log2(values.astype(np.float64) + 1)).astype(np.int64)
            self._counts += np.bincount(bins, minlength=65)
            self._total += int(values.sum())
            self._largest = max(self._largest, int(values.max()))

    def histogram(self) -> CountHistogram:
        """Return the accumulated histogram."""
        return CountHistogram.of(self._counts, int(self._counts.sum()), self._total, self._largest)


class Share(BaseModel):
    """A share and the bounds of its 95% Wilson interval."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, n_hits: int, n: int) -> Share:
        """Return the share of hits among n > 0 trials."""
        interval = binomtest(n_hits, n).proportion_ci(0.95, method="wilson")
        return cls(value=n_hits / n, low=float(interval.low), high=float(interval.high))


class SourceFigures(BaseModel):
    """Statistics of the kept rows of one source."""

    model_config = ConfigDict(frozen=True)

    n_rows: int
    longer_is_chosen: Share | None
    """Share of pairs whose chosen response is the longer one in characters, without pairs of equal length."""
    n_annotated: int
    """Number of rows with the share of annotators who agree."""
    agreement: float | None
    """Mean share of annotators who agree with the label."""
    languages: dict[str, float]
    """Share of each detected language (ISO 639) in the first rows, in descending order."""


class DataProfile(BaseModel):
    """Statistics of the kept rows."""

    model_config = ConfigDict(frozen=True)

    by_source: dict[str, SourceFigures]
    characters: dict[str, CountHistogram]
    """Number of characters of prompts and responses."""
    user_turns: dict[int, int]
    """Number of rows by the number of user turns in the prompt."""
    n_with_system: int
    """Number of rows that start with a system message."""


@dataclass
class _OfSource:
    n_rows: int = 0
    n_longer: int = 0
    n_shorter: int = 0
    agreement: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def figures(self) -> SourceFigures:
        n_unequal = self.n_longer + self.n_shorter
        return SourceFigures(
            n_rows=self.n_rows,
            longer_is_chosen=Share.of(self.n_longer, n_unequal) if n_unequal else None,
            n_annotated=len(self.agreement),
            agreement=float(np.mean(self.agreement)) if self.agreement else None,
            languages=languages(self.texts),
        )


class Gatherer:
    """Accumulates statistics from batches of kept rows."""

    def __init__(self, columns: Iterable[str]) -> None:
        """Start without rows.

        Args:
            columns: the columns with messages: the prompt, then each response.
        """
        self._columns = list(columns)
        self._characters = {name: Counting() for name in self._columns}
        self._turns: Counter[int] = Counter()
        self._n_with_system = 0
        self._sources: dict[str, _OfSource] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        if not batch.num_rows:
            return
        lengths = {name: _n_characters(batch.column(name)) for name in self._columns}
        for name, values in lengths.items():
            self._characters[name].add(values)
        prompts = batch.column("prompt")
        roles = prompts.flatten().field("role").to_numpy(zero_copy_only=False)
        starts = _starts(prompts)
        self._turns.update(np.add.reduceat(roles == "user", starts, dtype=np.int64).tolist())
        self._n_with_system += int((roles[starts] == "system").sum())
        names = batch.column("source").to_numpy(zero_copy_only=False)
        for source in dict.fromkeys(names.tolist()):
            self._add_source(batch, names == source, lengths, self._sources.setdefault(source, _OfSource()))

    def _add_source(self, batch: pa.RecordBatch, mask: np.ndarray, lengths: Any, to: _OfSource) -> None:
        to.n_rows += int(mask.sum())
        if "rejected" in lengths:
            difference = (lengths["chosen"] - lengths["rejected"])[mask]
            to.n_longer += int((difference > 0).sum())
            to.n_shorter += int((difference < 0).sum())
        if "annotators_agree" in batch.schema.names:
            to.agreement += [
                x for x in batch.column("annotators_agree").filter(pa.array(mask)).to_pylist() if x is not None
            ]
        if missing := N_LANGUAGE_SAMPLES - len(to.texts):
            rows = np.flatnonzero(mask)[:missing]
            parts = (batch.column(name).take(pa.array(rows)).to_pylist() for name in self._columns[:2])
            to.texts += ["\n".join(turns[-1]["content"] for turns in row) for row in zip(*parts, strict=True)]

    def figures(self) -> DataProfile:
        """Return the statistics of all added rows."""
        return DataProfile(
            by_source={name: self._sources[name].figures() for name in sorted(self._sources)},
            characters={name: counting.histogram() for name, counting in self._characters.items()},
            user_turns=dict(sorted(self._turns.items())),
            n_with_system=self._n_with_system,
        )


def agreement(values: Mapping[str, Any]) -> float | None:
    """Return the share of a row's annotators who agree with its label; None if the row has no such information.

    It is read from the column `annotators_agree`, or computed from the columns `annotator1`, `annotator2` and so on.
    """
    share = values.get("annotators_agree")
    if isinstance(share, int | float) and 0 <= share <= 1:
        return float(share)
    votes = [str(vote) for name, vote in values.items() if re.fullmatch(r"annotator_?\d+", name)]
    return Counter(votes).most_common(1)[0][1] / len(votes) if len(votes) > 1 else None


def languages(texts: list[str]) -> dict[str, float]:
    """Return the share of each language in the texts, in descending order. Detection is unreliable for short texts."""
    from py3langid import classify  # takes a second to import

    counts = Counter(classify(text[:1000])[0] for text in texts)
    return {name: n / len(texts) for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}


def _n_characters(messages: pa.Array) -> np.ndarray:
    """Return the number of characters in each conversation. None may be empty."""
    lengths = pc.utf8_length(messages.flatten().field("content")).to_numpy(zero_copy_only=False)
    return np.add.reduceat(lengths, _starts(messages), dtype=np.int64)


def _starts(messages: pa.Array) -> np.ndarray:
    """Return the index of the first message of each conversation among all messages."""
    n_messages = np.asarray(pc.list_value_length(messages))
    starts: np.ndarray = np.cumsum(n_messages) - n_messages
    return starts
