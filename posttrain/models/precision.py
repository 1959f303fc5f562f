"""Device, numeric precision and free memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import psutil
import torch

from posttrain.config import ModelSection
from posttrain.models.memory import GIB, read_shape

MIN_AMX_WIDTH = 384
"""Hidden size from which AMX gains more than the casts to bf16 cost: below, a step took up to twice as long in bf16."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def device() -> torch.device:
    """Where models run: the first GPU of this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@functools.cache
def keep_freed_memory() -> None:
    """Lets this process keep what its tensors free, where the C library would return it and fetch it again in every step.

    A page fault for each 4 KiB of every large tensor took up to an eighth of a step on two cores. Only glibc has the call.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(option, 2**30)


def free_gib() -> float:
    """Memory that is free where models run: on the GPU, else on this machine within the limit of its container."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]) / GIB
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without limit
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free / GIB


def uses_bf16(section: ModelSection) -> bool:
    """Whether matrix products run in bfloat16: by itself only where that is faster, a GPU or a CPU with AMX and a wide model."""
    if section.precision == "auto":
        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return bool(torch.cpu._is_amx_tile_supported()) and _width(section.base, section.revision) >= MIN_AMX_WIDTH
    return section.precision == "bf16"


@functools.cache
def _width(base: str, revision: str | None) -> float:
    """The hidden size of a base; infinite where its shape is not on this machine."""
    shape = read_shape(ModelSection(base=base, revision=revision))
    return shape.hidden_size if shape else math.inf


def autocast(section: ModelSection) -> contextlib.AbstractContextManager[Any]:
    """The precision context of a forward pass outside the trainer: the same as inside it."""
    if uses_bf16(section):
        return torch.autocast(device().type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
