"""Subsamples the training pairs: each source has the share given by its weight, or old pairs have a share beside new ones."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

from posttrain.errors import UserError


def find_left_out(
    sources: Sequence[int], keys: Sequence[bytes], weights: Sequence[float], names: Sequence[str], seed: int
) -> set[int]:
    """Return the positions of the pairs to leave out. As many pairs as the weights allow are kept, and none is repeated.

    The pairs of a source with the smallest seeded hashes are kept. Which ones these are depends neither on their order nor on
    the other sources, and a higher weight only adds pairs.

    Args:
        sources: index of the source of each training pair that passed all checks.
        keys: a key for each pair, different for different pairs.
        weights: weight of each source, above 0.
        names: name of each source, for error messages.
        seed: a different seed selects different pairs.

    Raises:
        UserError: a source has no pair left.
    """
    places = defaultdict[int, list[int]](list)
    for i, source in enumerate(sources):
        places[source].append(i)
    for source, name in enumerate(names):
        if not places[source]:
            raise UserError(
                f"{name}: has no training pairs left, so its weight cannot be applied: correct the source, or remove it"
            )
    # Number of pairs for a weight of 1, limited by the source that runs out first.
    unit = min(len(found) / weights[source] for source, found in places.items())
    left_out = set[int]()
    for source, found in places.items():
        n = math.floor(unit * weights[source] + 1e-6)  # for rounding errors such as 3 / 0.3 * 0.3 = 2.9999999999999996
        found.sort(key=lambda i: hashlib.sha256(f"{seed}:".encode() + keys[i]).digest())
        left_out.update(found[max(n, 1) :])
    return left_out


def find_not_replayed(sources: Sequence[int], keys: Sequence[bytes], share: float, seed: int) -> set[int]:
    """Return the positions of the old pairs to leave out, so that old pairs are a share of all pairs that are kept.

    The pairs of the last source are new, and all of them are kept. Old pairs with the smallest seeded hashes are kept; a larger
    share only adds pairs. If there are too few old pairs, all are kept.

    Args:
        sources, keys, seed: as for `find_left_out`.
        share: of the old pairs, above 0 and below 1.
    """
    last = max(sources, default=0)
    old = [i for i, source in enumerate(sources) if source != last]
    n_kept = math.floor((len(sources) - len(old)) * share / (1 - share) + 1e-6)
    old.sort(key=lambda i: hashlib.sha256(f"{seed}:".encode() + keys[i]).digest())
    return set(old[n_kept:])
