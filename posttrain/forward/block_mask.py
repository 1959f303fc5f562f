"""The mask of a flat row for FlexAttention, built block by block from the bounds of prefixes and branches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Width of a block, in tokens: FlexAttention's default."""


@dataclass(frozen=True)
class _Span:
    """Consecutive tokens of a row: the index of the first, the index after the last, and the position of the first."""

    start: int
    end: int
    position: int

    @property
    def blocks(self) -> slice:
        """The blocks that contain any of the tokens."""
        return slice(self.start // BLOCK, -(-self.end // BLOCK))

    def bounds(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return for each of `blocks` the first and the last position of a token in it, and whether all its tokens belong here."""
        first = np.arange(self.blocks.start, self.blocks.stop) * BLOCK
        shift = self.position - self.start
        whole = (first >= self.start) & (first + BLOCK <= self.end)
        return np.maximum(first, self.start) + shift, np.minimum(first + BLOCK, self.end) - 1 + shift, whole


def _visible(groups: Sequence[tuple[int, ...]]) -> Iterator[tuple[_Span, _Span]]:
    """Yield the parts of a row whose tokens see each other: queries, and the keys that they see up to their own position."""
    start = 0
    for n_prefix, *branches in groups:
        prefix = _Span(start, start + n_prefix, 0)
        yield prefix, prefix
        start = prefix.end
        for n in branches:
            branch = _Span(start, start + n, n_prefix)
            yield branch, prefix
            yield branch, branch
            start = branch.end


def blocks(groups: Sequence[tuple[int, ...]], window: int | None) -> tuple[Tensor, Tensor]:
    """Return for each pair of blocks whether any query sees a key, and whether every query is known to see every key.

    Args:
        groups: lengths of prefix and branches, as in `Segments`.
        window: number of positions that a query sees, its own included; None for all before it.

    Returns:
        Two tensors (blocks, blocks). Where `all` is False, the mask is evaluated for each token.
    """
    n_blocks = -(-sum(map(sum, groups)) // BLOCK)
    some, every = (np.zeros((n_blocks, n_blocks), dtype=bool) for _ in range(2))
    for queries, keys in _visible(groups):
        if queries.start == queries.end or keys.start == keys.end:
            continue
        first_query, last_query, whole_query = (bound[:, None] for bound in queries.bounds())
        first_key, last_key, whole_key = keys.bounds()
        sees_some, sees_every = last_query >= first_key, first_query >= last_key
        if window is not None:
            sees_some &= first_query - last_key < window
            sees_every &= last_query - first_key < window
        some[queries.blocks, keys.blocks] |= sees_some
        every[queries.blocks, keys.blocks] |= sees_every & whole_query & whole_key
    return torch.from_numpy(some), torch.from_numpy(every)


def build_block_mask(
    groups: Sequence[tuple[int, ...]],
    labels: tuple[Tensor, Tensor, Tensor],
    device: torch.device,
    window: int | None,
) -> BlockMask:
    """Return the mask of a whole row. Its memory grows with the number of blocks, not with the square of the tokens.

    Args:
        labels: (N,) the group, the number of the branch (0 in a prefix) and the position of each token.
    """
    group, branch, position = (label.to(device) for label in labels)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (branch[query] == branch[key]) | (branch[key] == 0)
        near = True if window is None else position[query] - position[key] < window
        return (group[query] == group[key]) & own & (query >= key) & near

    some, every = blocks(groups, window)
    partial, whole = _listed(some & ~every, device), _listed(every, device)
    n = len(group)
    return BlockMask.from_kv_blocks(*partial, *whole, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(n, n))


def _listed(which: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return for each row of blocks how many of its blocks are true, and the columns of these first, in order."""
    numbers = which.sum(dim=1, dtype=torch.int32)
    columns = which.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return numbers[None, None].to(device), columns[None, None].to(device)
