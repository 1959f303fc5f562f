"""Private parts of PyTorch: the number of graphs that were compiled, and the matrix product of oneDNN."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._dynamo.utils import counters


def n_compiled_graphs() -> int:
    """Return how many graphs `torch.compile` has compiled in this process.

    Reason: past its limit of recompilations FlexAttention computes all scores instead of failing, so the number is checked.
    Read against: PyTorch 2.11 and 2.13 (`torch._dynamo.utils.counters`).
    Remove when: PyTorch has a public count of compilations.
    """
    return int(counters["stats"]["unique_graphs"])


def onednn_product(rows: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """Return `rows @ weight.T` in fp32 on a CPU by oneDNN, plus a tensor of the result's shape if one is given.

    Reason: PyTorch multiplies fp32 matrices by MKL, which is slower on an AMD CPU. No setting chooses oneDNN for them.
    Read against: PyTorch 2.11 and 2.13 (`torch.ops.mkldnn._linear_pointwise`, which inductor calls).
    Remove when: a setting of PyTorch chooses the library of fp32 products.
    """
    if plus is None:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
        return result
    total: Tensor = torch.ops.mkldnn._linear_pointwise(rows, plus, weight, None, "add")
    return total
