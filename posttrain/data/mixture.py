"""Which training pairs stay, so that each source has the share of them that its weight says."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

from posttrain.errors import UserError


def find_left_out(
    sources: Sequence[int], keys: Sequence[bytes], weights: Sequence[float], names: Sequence[str], seed: int
) -> set[int]:
    """The positions of the pairs that must go. As many stay as the weights allow, and none is repeated.

    Of a source those pairs stay whose hash with the seed is smallest, so which ones they are depends neither on their order nor
    on the other sources, and more weight only adds some.

    Args:
        sources: the source of each training pair that has passed every check.
        keys: of each pair, different for different pairs.
        weights: of each source, above 0.
        names: of each source, for an error.
        seed: another one chooses other pairs.

    Raises:
        UserError: a source has no pair left, so it can have no share.
    """
    places = defaultdict[int, list[int]](list)
    for i, source in enumerate(sources):
        places[source].append(i)
    for source, name in enumerate(names):
        if not places[source]:
            raise UserError(
                f"{name}: no training pair of it is left, so it can have no share of the mixture: drop the source, or mend it"
            )
    # How many pairs a weight of 1 stands for: the source that runs out first decides.
    unit = min(len(found) / weights[source] for source, found in places.items())
    left_out = set[int]()
    for source, found in places.items():
        n = math.floor(unit * weights[source] + 1e-6)  # 3 / 0.3 * 0.3 is 2.9999999999999996 or so
        found.sort(key=lambda i: hashlib.sha256(f"{seed}:".encode() + keys[i]).digest())
        left_out.update(found[max(n, 1) :])
    return left_out
