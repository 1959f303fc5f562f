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


def uses_bf16(section: ModelSection) -> bool:
    """Return whether matrix products run in bfloat16. `auto` chooses it on a GPU, and on a CPU with AMX for wide models."""
    if section.precision == "auto":
        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return has_amx() and _width(section.base, section.revision) >= MIN_AMX_WIDTH
    return section.precision == "bf16"


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
    if uses_bf16(section):
        return torch.autocast(device().type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
