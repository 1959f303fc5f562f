"""What a check yields, and how its sizes depend on the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """One line of the table: a measured value, and whether it is within its limit."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def ok(self) -> bool | None:
        """Whether the value is within its limit; None without a limit. NaN never is."""
        if self.at_most is None and self.at_least is None:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    def to_json(self) -> dict[str, Any]:
        """Return the figure as plain values."""
        return {**asdict(self), "ok": self.ok}


class Skipped(Exception):
    """The machine lacks what the check needs."""


@dataclass(frozen=True)
class Scale:
    """Sizes of a run: of a GPU, or small ones that rehearse every check on a CPU."""

    device: torch.device

    @property
    def on_gpu(self) -> bool:
        """Return whether the run measures a GPU."""
        return self.device.type == "cuda"

    def pick(self, on_gpu: Any, rehearsal: Any) -> Any:
        """Return the first value on a GPU, else the second."""
        return on_gpu if self.on_gpu else rehearsal

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Start a new measurement of the peak memory."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        """Return the peak of the allocated GPU memory in GiB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / GIB if self.on_gpu else 0.0

    def allocated_gib(self) -> float:
        """Return the allocated GPU memory in GiB; 0 on a CPU."""
        return torch.cuda.memory_allocated() / GIB if self.on_gpu else 0.0

    def seconds(self, run: Callable[[], Any], n: int) -> float:
        """Return the mean time of `run` over n calls, after one call that is not counted."""
        run()
        self.synchronize()
        began = time.perf_counter()
        for _ in range(n):
            run()
        self.synchronize()
        return (time.perf_counter() - began) / n


Check = Callable[[Scale], Iterator[Figure]]
