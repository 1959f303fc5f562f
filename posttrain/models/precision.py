"""Device, numeric precision and free memory of this process."""

from __future__ import annotations

import contextlib
import functools
import math
from pathlib import Path
from typing import Any

import psutil
import torch

from posttrain.config import ModelSection
from posttrain.models.memory import GIB, read_shape

MIN_AMX_WIDTH = 384
"""Smallest hidden size for bf16 with AMX. Smaller models took up to twice as long per step in bf16, because of the casts."""

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Names of the precisions, as in the settings."""


def device() -> torch.device:
    """Return where models run: the current GPU of this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def free_gib() -> float:
    """Return the free memory in GiB where models run: of the GPU, else of this machine within the limit of its container."""
    if torch.cuda.is_available():
        # PyTorch keeps freed memory for its next tensors, and the driver counts it as used.
        reusable = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return float(torch.cuda.mem_get_info()[0] + reusable) / GIB
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no control group, or no limit
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free / GIB


def compute_dtype(section: ModelSection) -> torch.dtype:
    """Return the precision of matrix products.

    `auto` chooses bf16 on a GPU, fp16 on a GPU that lacks bf16, and on a CPU bf16 with AMX for wide models, else fp32.
    """
    if section.precision != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[section.precision]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if has_amx() and _width(section.base, section.revision) >= MIN_AMX_WIDTH else torch.float32


def is_16_bit(section: ModelSection) -> bool:
    """Return whether matrix products run in 16 bit."""
    return compute_dtype(section) != torch.float32


def has_amx() -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_tile", False))


@functools.cache
def _width(base: str, revision: str | None) -> float:
    """Return the hidden size of a base model; infinity if it is not on this machine."""
    shape = read_shape(ModelSection(base=base, revision=revision))
    return shape.hidden_size if shape else math.inf


def autocast(section: ModelSection) -> contextlib.AbstractContextManager[Any]:
    """Return the precision context for a forward pass outside the trainer, equal to the trainer's."""
    if is_16_bit(section):
        return torch.autocast(device().type, dtype=compute_dtype(section))
    return contextlib.nullcontext()
