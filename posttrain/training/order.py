"""The order in which a training reads its rows."""

from __future__ import annotations

import torch


def epoch_order(n_rows: int, seed: int, epoch: int = 0) -> list[int]:
    """Return the positions of the rows in the order in which an epoch reads them, as transformers' Trainer draws it."""
    order: list[int] = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    return order
