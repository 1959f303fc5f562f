"""Rows grouped by prompt. Pairs of one prompt are not independent, so every interval and test counts prompts, not pairs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SKETCH_SIZE = 512
HASH_BYTES = 6


@dataclass(frozen=True)
class Clusters:
    """Which prompt each row belongs to."""

    index: np.ndarray
    """Number of the prompt of each row, from 0 in the order of first appearance: int64 of shape (rows,)."""
    n: int
    """Number of prompts."""

    @classmethod
    def of(cls, keys: Sequence[Any] | np.ndarray) -> Clusters:
        """Return the clusters of rows, of which each has the key of its prompt."""
        numbers: dict[Any, int] = {}
        index = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
        return cls(index, len(numbers))

    @classmethod
    def single(cls, n_rows: int) -> Clusters:
        """Return clusters of one row each."""
        return cls(np.arange(n_rows), n_rows)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def sizes(self) -> np.ndarray:
        """Number of rows of each prompt, float64 of shape (prompts,)."""
        return self.sums(np.ones(self.n_rows))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of the values of each prompt, float64 of shape (prompts,)."""
        totals: np.ndarray = np.bincount(self.index, np.asarray(values, dtype=np.float64), self.n)
        return totals

    def where(self, inside: np.ndarray) -> Clusters:
        """Return the clusters of the rows that a mask selects."""
        return Clusters.of(self.index[inside].tolist())

    def mean_variance(self, values: np.ndarray) -> float:
        """Return the variance of the mean of the rows, with prompts sampled at random; NaN for a single prompt.

        Source: Cochran 1977, equation 6.13 (ratio to size): n / (n - 1) x sum of (sum of a prompt - mean x its size)^2 / rows^2.
        """
        if self.n < 2:
            return float("nan")
        residuals = self.sums(values) - values.mean() * self.sizes
        return float(self.n / (self.n - 1) * (residuals**2).sum() / self.n_rows**2)

    def design_effect(self, values: np.ndarray) -> float:
        """Return how many times the variance of the mean exceeds that of independent rows.

        It is at least 1, and at most the mean number of rows of a prompt weighted by rows. It is this maximum if the values
        are all the same or there is one prompt, so that it cannot be estimated.

        Source: Kish 1965.
        """
        largest = float((self.sizes**2).sum() / self.n_rows)
        independent = float(np.var(values)) / self.n_rows
        if self.n == self.n_rows:
            return 1.0
        if self.n < 2 or independent == 0:
            return largest
        return min(max(1.0, self.mean_variance(values) / independent), largest)


def prompts_digest(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    """Return the digest of a set of prompts. Their order and how often each occurs do not matter."""
    return hashlib.sha256("\n".join(sorted(_keys(prompts))).encode()).hexdigest()


def prompts_sketch(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    """Return a short text about a set of prompts, from which `share_seen` tells how far two sets overlap.

    It holds the number of different prompts and the smallest `SKETCH_SIZE` of their hashes: about 4 kB for any set.

    Source: Cohen and Kaplan 2007, bottom-k sketches.
    """
    hashes = sorted(hashlib.sha256(key.encode()).digest()[:HASH_BYTES] for key in _keys(prompts))
    return f"{len(hashes)}:{base64.b64encode(b''.join(hashes[:SKETCH_SIZE])).decode()}"


def share_seen(sketch: str, earlier: str) -> float:
    """Return which share of a set of prompts is in an earlier set too; exact for sets of at most `SKETCH_SIZE` prompts.

    For larger sets it is estimated with a standard error of at most 3 points.

    Args:
        sketch, earlier: of the two sets, from `prompts_sketch`.
    """
    (n, own), (n_earlier, other) = _hashes(sketch), _hashes(earlier)
    smallest = sorted(own | other)[:SKETCH_SIZE]
    if not own or not smallest:
        return 0.0
    common = own & other
    jaccard = sum(found in common for found in smallest) / len(smallest)
    if len(own) == n and len(other) == n_earlier:
        return len(common) / n
    return min(1.0, jaccard * (n + n_earlier) / (1 + jaccard) / n)


def _keys(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> set[str]:
    return {json.dumps([dict(message) for message in prompt], sort_keys=True, default=str) for prompt in prompts}


def _hashes(sketch: str) -> tuple[int, set[bytes]]:
    n, _, encoded = sketch.partition(":")
    data = base64.b64decode(encoded)
    return int(n), {data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)}


def conversation_key(prompt: Sequence[Mapping[str, Any]]) -> str:
    """Return the key of a prompt's conversation: a digest of its messages up to the first one by the user.

    Prompts that continue the same conversation, as in trees of replies, have the same key.
    """
    first = next((i for i, message in enumerate(prompt) if message["role"] == "user"), len(prompt) - 1)
    opening = [dict(message) for message in prompt[: first + 1]]
    return hashlib.sha256(json.dumps(opening, sort_keys=True, default=str).encode()).hexdigest()[:16]
