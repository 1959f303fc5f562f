"""Which texts are nearly the same: MinHash finds candidates, and their words decide."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
from rensa import RMinHash

N_BANDS, N_ROWS = 25, 5
"""Two texts are candidates if all slots of a band are the same: at similarity s with probability 1 - (1 - s^5)^25, which
is 99.99% at 0.8 and 1% at 0.2."""
N_SLOTS = 128
N_BESIDE = 2
SEED = 20

_PUNCTUATION = str.maketrans(dict.fromkeys("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", " "))
# Scripts that put no space between words: each character counts as one.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(texts: Iterable[str]) -> list[str]:
    """The words of texts without case and punctuation; texts without any word are one each."""
    found: list[str] = []
    for text in texts:
        if text.isascii():
            found += text.translate(_PUNCTUATION).casefold().split() or [text]
        else:
            found += _WORD.findall(text.casefold()) or [text]
    return found


def similarity(first: Sequence[str], second: Sequence[str]) -> float:
    """Jaccard similarity of the triples of words in two texts: 1 for the same words in the same order."""
    ours, theirs = _triples(first), _triples(second)
    return len(ours & theirs) / len(ours | theirs)


def _triples(found: Sequence[str]) -> set[tuple[str, ...]]:
    padded = [*found, "", ""]
    return set(zip(padded, padded[1:], padded[2:], strict=False))


class Sketches:
    """MinHash sketches of texts, as one key a band: 100 bytes a text."""

    def __init__(self) -> None:
        self._batches: list[np.ndarray] = []

    def add(self, texts: Sequence[Sequence[str]]) -> None:
        """Takes the words of some more texts."""
        if not texts:
            return
        hashes = RMinHash.hash_token_sets([[*found, "", ""] for found in texts])
        ends = np.cumsum([len(row) for row in hashes])
        flat = np.fromiter(chain.from_iterable(hashes), np.uint64, ends[-1])
        # A triple's hash; the last two of a text reach into the next one and are left out.
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
        """Pairs (text, earlier text) that may be near copies, ascending and each once, as an (n, 2) array of positions.

        Among the texts of one group that share a band, the first is compared with all others.

        Args:
            group: of each text, a small number; below 0 for a text that is not to be compared.
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
        """Pairs (text, original) that may be near copies, ascending and each once, as an (n, 2) array of positions.

        Each text is compared with the originals that share a band; where these are many, as among prompts of one template,
        with five of them: those next to it when all are sorted by another band, as the nearest are the likeliest to be.

        Args:
            originals: whether a text is one that others may be copies of; it is a copy of none itself.
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
        """The key of each band of each text: (25, n)."""
        return np.concatenate([np.empty((0, N_BANDS), np.uint32), *self._batches]).T


def find_near(
    candidates: np.ndarray, parts: Callable[[int], Sequence[Sequence[str]]], threshold: float
) -> dict[int, int]:
    """Each text that is a near copy: the first of its leaders that it is near to.

    A text that was found to be a near copy leads no other, so one of every cluster stays.

    Args:
        candidates: as `Sketches.repeats` or `Sketches.copies` gives them.
        parts: the words of each part of a text (say prompt, chosen, rejected). All parts must be similar.
        threshold: the least similarity of a part.
    """
    near: dict[int, int] = {}
    for text, leader in candidates.tolist():
        if text in near or leader in near:
            continue
        if all(similarity(*both) >= threshold for both in zip(parts(text), parts(leader), strict=True)):
            near[text] = leader
    return near
