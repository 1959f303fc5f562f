"""Division of work into parts that take about as long."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balance(costs: Sequence[int], n_parts: int, room: int | None = None) -> list[list[int]]:
    """Return the positions of the costs in parts with about equal sums.

    Longest first: each cost goes to the part with the smallest sum so far that has room.

    Args:
        room: largest number of positions in a part; None: any number.
    """
    parts: list[list[int]] = [[] for _ in range(n_parts)]
    smallest = [(0, part) for part in range(n_parts)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        total, part = heapq.heappop(smallest)
        parts[part].append(i)
        if room is None or len(parts[part]) < room:
            heapq.heappush(smallest, (total + int(costs[i]), part))
    return parts
