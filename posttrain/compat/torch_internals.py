"""Private parts of PyTorch: compiled graphs and the sizes that they are compiled for, and oneDNN's matrix product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._dynamo import mark_static
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

CompilationRefused = FailOnRecompileLimitHit
"""What `torch.compile(fullgraph=True)` raises instead of exceeding its limit of recompilations.

Reason: it derives from no public exception.
Read against: PyTorch 2.13 (`torch._dynamo.exc.FailOnRecompileLimitHit`).
Remove when: PyTorch documents it under a public name.
"""


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


def compile_for_sizes(tensor: torch.Tensor, dims: tuple[int, ...]) -> None:
    """Let `torch.compile(dynamic=True)` treat these dimensions of an input as constants.

    Reason: PyTorch takes two dimensions that happen to be equal in the first call, such as heads and blocks, for the same
    variable, and compiles again when they differ.
    Read against: PyTorch 2.13 (`torch._dynamo.mark_static`, documented under this name).
    Remove when: PyTorch documents it under a public name.
    """
    for dim in dims:
        mark_static(tensor, dim)
