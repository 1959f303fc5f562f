"""Near-duplicate detection: MinHash proposes candidates, and the exact Jaccard similarity decides.

Source: Broder 1997 (MinHash).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
from rensa import RMinHash

N_BANDS, N_ROWS = 25, 5
"""Two texts are candidates if they agree in all slots of a band. At similarity s the probability is 1 - (1 - s^5)^25, which
is 99.99% at 0.8 and 1% at 0.2."""
N_SLOTS = 128
N_BESIDE = 2
SEED = 20

_PUNCTUATION = str.maketrans(dict.fromkeys("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", " "))
# Scripts without spaces between words: each character counts as a word.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(texts: Iterable[str]) -> list[str]:
    """Return the words of texts in lower case without punctuation. A text without words counts as one word."""
    found: list[str] = []
    for text in texts:
        if text.isascii():
            found += text.translate(_PUNCTUATION).casefold().split() or [text]
        else:
            found += _WORD.findall(text.casefold()) or [text]
    return found


def similarity(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the Jaccard similarity of the word trigrams of two texts: 1 for the same words in the same order."""
    ours, theirs = _triples(first), _triples(second)
    return len(ours & theirs) / len(ours | theirs)


def _triples(found: Sequence[str]) -> set[tuple[str, ...]]:
    padded = [*found, "", ""]
    return set(zip(padded, padded[1:], padded[2:], strict=False))


class Sketches:
    """MinHash sketches of texts, with one key per band: 100 bytes per text.

    rensa's own index of bands (`RMinHashLSH`) took 2,800 bytes per text, measured on 100,000 texts. A million pairs have
    three million texts.
    """

    def __init__(self) -> None:
        self._batches: list[np.ndarray] = []

    def add(self, texts: Sequence[Sequence[str]]) -> None:
        """Add texts, given as their words."""
        if not texts:
            return
        hashes = RMinHash.hash_token_sets([[*found, "", ""] for found in texts])
        ends = np.cumsum([len(row) for row in hashes])
        flat = np.fromiter(chain.from_iterable(hashes), np.uint64, ends[-1])
        # Hashes of trigrams; the last two of each text overlap the next text and are left out.
        mixed = flat[:-2] * np.uint64(0x9E3779B97F4A7C15) + flat[1:-1] * np.uint64(0xC2B2AE3D27D4EB4F) + flat[2:]
        inside = np.ones(len(flat), bool)
        inside[ends - 1] = inside[ends - 2] = False
        offsets = np.concatenate([[0], ends - 2 * np.arange(1, len(ends) + 1)]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(mixed[inside[:-2]], offsets, N_SLOTS, SEED)
        slots = np.array(matrix.to_rows(), np.uint64)[:, : N_BANDS * N_ROWS].reshape(-1, N_BANDS, N_ROWS)
        keys = np.zeros(slots.shape[:2], np.uint64)
        for row in range(N_ROWS):
            keys = (keys ^ slots[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        self._batches.append((keys >> np.uint64(32)).astype(np.uint32))

    def repeats(self, group: np.ndarray) -> np.ndarray:
        """Return candidate pairs (text, earlier text), sorted and unique, as an (n, 2) array of positions.

        Within a group, the first of the texts that share a band is paired with each of the others.

        Args:
            group: a small number for each text; texts with a number below 0 are not compared.
        """
        compared = np.flatnonzero(group >= 0)
        found = [np.empty((0, 2), np.int64)]
        for band in self._bands():
            key = band[compared].astype(np.uint64) << np.uint64(8) | group[compared].astype(np.uint64)
            order = np.argsort(key, kind="stable")
            key, position = key[order], compared[order]
            starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
            first = np.repeat(position[starts], np.diff(np.append(starts, len(key))))
            found.append(np.stack([position, first], axis=1)[first != position])
        return np.unique(np.concatenate(found), axis=0)

    def copies(self, originals: np.ndarray) -> np.ndarray:
        """Return candidate pairs (text, original), sorted and unique, as an (n, 2) array of positions.

        A text is paired with the originals that share a band. If there are many, as with prompts from one template, only the
        five nearest ones after sorting by the next band are used.

        Args:
            originals: whether each text is an original. An original is never a copy itself.
        """
        found = [np.empty((0, 2), np.int64)]
        bands = self._bands()
        for key, next_key in zip(bands, np.roll(bands, -1, axis=0), strict=True):
            shared = np.flatnonzero(np.isin(key, key[originals]))
            order = shared[np.lexsort((next_key[shared], key[shared]))]
            is_original = originals[order]
            copies, places = np.flatnonzero(~is_original), np.flatnonzero(is_original)
            n_before = np.searchsorted(places, copies)
            for nth in range(-N_BESIDE, N_BESIDE + 1):
                beside = n_before + nth
                exists = (beside >= 0) & (beside < len(places))
                pairs = order[np.stack([copies[exists], places[beside[exists]]], axis=1)]
                found.append(pairs[key[pairs[:, 0]] == key[pairs[:, 1]]])
        return np.unique(np.concatenate(found), axis=0)

    def _bands(self) -> np.ndarray:
        """Return the key of each band of each text, of shape (25, n)."""
        return np.concatenate([np.empty((0, N_BANDS), np.uint32), *self._batches]).T


def find_near(
    candidates: np.ndarray, parts: Callable[[int], Sequence[Sequence[str]]], threshold: float
) -> dict[int, int]:
    """Return each near copy and the text that it is a copy of.

    Nothing is reported as a copy of a text that is itself a copy, so one text of each cluster remains.

    Args:
        candidates: pairs from `Sketches.repeats` or `Sketches.copies`.
        parts: function that returns the words of each part of a text, such as prompt, chosen and rejected.
        threshold: minimum Jaccard similarity, which every part must reach.
    """
    near: dict[int, int] = {}
    for text, leader in candidates.tolist():
        if text in near or leader in near:
            continue
        if all(similarity(*both) >= threshold for both in zip(parts(text), parts(leader), strict=True)):
            near[text] = leader
    return near
