"""Private parts of PyTorch: the number of graphs that were compiled."""

from __future__ import annotations

from torch._dynamo.utils import counters


def n_compiled_graphs() -> int:
    """Return how many graphs `torch.compile` has compiled in this process.

    Reason: past its limit of recompilations FlexAttention computes all scores instead of failing, so the number is checked.
    Read against: PyTorch 2.11 and 2.13 (`torch._dynamo.utils.counters`).
    Remove when: PyTorch has a public count of compilations.
    """
    return int(counters["stats"]["unique_graphs"])
