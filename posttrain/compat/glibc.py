"""An option of glibc's memory allocator."""

from __future__ import annotations

import contextlib
import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed memory instead of returning it to the system. No effect without glibc.

    Reason: tensors of a training step are freed and allocated again in every step. The page faults of the new memory took
    up to an eighth of a step on two cores.
    Read against: glibc 2.36 (`mallopt`); PyTorch 2.13, whose CPU allocator calls glibc's.
    Remove when: PyTorch's CPU allocator keeps freed memory.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(option, 2**30)
