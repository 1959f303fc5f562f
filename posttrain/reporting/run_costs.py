"""What a run costs: time, GPU time, tokens and money, by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict


class StepCost(BaseModel):
    """What one step used; a step that was taken from the cache has none."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    gpu_seconds: float = 0.0
    """Seconds times the GPUs of the machine, whether the step kept them busy or not."""
    tokens: int = 0
    """Tokens that were trained on, scored, written or made."""


class RunCosts(BaseModel):
    """What a run used."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    """From the start of the run, waiting for machines included."""
    steps: dict[str, StepCost]
    """Of the steps that were not taken from the cache."""
    gpu_hour: float | None = None
    """Price of a GPU hour."""
    currency: str = "USD"

    @property
    def gpu_seconds(self) -> float:
        """GPU time of all steps."""
        return sum(step.gpu_seconds for step in self.steps.values())

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return sum(step.tokens for step in self.steps.values())

    @property
    def money(self) -> float | None:
        """Price of the GPU time; None without `costs.gpu_hour`."""
        return None if self.gpu_hour is None else self.gpu_seconds / 3600 * self.gpu_hour

    def as_dict(self) -> dict[str, Any]:
        """Return all figures with their sums, for scripts."""
        return {**self.model_dump(), "gpu_seconds": self.gpu_seconds, "tokens": self.tokens, "money": self.money}

    def metrics(self) -> dict[str, float]:
        """Return all figures under names such as `cost/seconds` and `cost_train_dpo/seconds`."""
        found = {"cost/seconds": self.seconds, "cost/gpu_seconds": self.gpu_seconds, "cost/tokens": float(self.tokens)}
        if self.money is not None:
            found["cost/money"] = self.money
        for name, step in self.steps.items():
            found |= {f"cost_{name}/{key}": float(value) for key, value in step.model_dump().items() if value}
            if self.gpu_hour is not None and step.gpu_seconds:
                found[f"cost_{name}/money"] = step.gpu_seconds / 3600 * self.gpu_hour
        return found

    def line(self) -> str:
        """Return the sums in a line: `12 min, GPU 9 min, 1.2 million tokens, 0.38 USD`."""
        parts = [duration(self.seconds)]
        if self.gpu_seconds:
            parts.append(f"GPU {duration(self.gpu_seconds)}")
        if self.tokens:
            parts.append(f"{count(self.tokens)} tokens")
        if self.money is not None:
            parts.append(f"{self.money:,.2f} {self.currency}")
        return ", ".join(parts)

    def rows(self) -> Iterator[list[str]]:
        """Yield a row for each step that ran: name, time, GPU time, tokens and, if there is a price, money."""
        for name, step in self.steps.items():
            row = [name, duration(step.seconds), duration(step.gpu_seconds), count(step.tokens)]
            yield row if self.gpu_hour is None else [*row, f"{step.gpu_seconds / 3600 * self.gpu_hour:,.2f}"]

    @property
    def header(self) -> list[str]:
        """Names of the columns of `rows`."""
        return ["step", "time", "GPU time", "tokens", *([] if self.gpu_hour is None else [self.currency])]


def duration(seconds: float) -> str:
    """Return a time in its two largest units: `41 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: int) -> str:
    """Return a large number in three digits: `950`, `12.3 thousand`, `1.20 million`."""
    for size, name in ((1_000_000_000, "billion"), (1_000_000, "million"), (1_000, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return str(number)
