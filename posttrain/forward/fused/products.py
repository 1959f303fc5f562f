"""Matrix products with frozen weights, by the faster of a CPU's two libraries."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from posttrain.compat.torch_internals import onednn_product


def product(rows: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """Return `rows @ weight.T`, plus a tensor of the result's shape if one is given.

    Args:
        rows: (n, inputs).
        weight: (outputs, inputs), in any strides: the backward pass gives the transposed weight.
        plus: (n, outputs).
    """
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and len(rows) and _prefers_onednn():
        return onednn_product(rows.contiguous(), weight, plus)  # a thousand times slower from transposed rows
    return torch.mm(rows, weight.t()) if plus is None else torch.addmm(plus, rows, weight.t())


@functools.cache
def _prefers_onednn() -> bool:
    """Return whether oneDNN multiplies fp32 matrices faster than MKL, PyTorch's choice: on CPUs that are not Intel's.

    Decided by the CPU's maker and not by a measurement, so that a training gives the same figures in every run.
    """
    cpuinfo = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and cpuinfo.exists()
        and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    )
