"""What the rules look at: training curves, figures and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from posttrain.evaluation.figures import Figures, StageFigures
from posttrain.evaluation.intervals import Estimate

History = list[dict[str, float]]


Seen = tuple[str, dict[str, float]] | None
"""What is the case, and the figures that say so; None where all is well or nothing can be said."""


MIN_LOGS = 8
"""Fewer logged steps are no curve."""


class WrittenBy(Protocol):
    """What rules look at in the answers of one stage."""

    @property
    def stop_rate(self) -> Estimate: ...
    @property
    def n_tokens(self) -> Estimate: ...


class Written(Protocol):
    """Answers to test prompts, by stage."""

    @property
    def stages(self) -> Mapping[str, WrittenBy]: ...


class Curves:
    """What a trainer logged, by name of the figure."""

    def __init__(self, history: History) -> None:
        self._train = [entry for entry in history if "loss" in entry]
        self._validation = [entry for entry in history if "eval_loss" in entry]

    def train(self, name: str) -> np.ndarray:
        """Every logged value of a training figure, in order."""
        return np.array([entry[name] for entry in self._train if name in entry])

    def validation(self, name: str) -> np.ndarray:
        """Every value of a validation figure, in order."""
        return np.array([entry[f"eval_{name}"] for entry in self._validation if f"eval_{name}" in entry])

    def ends(self, name: str) -> tuple[float, float] | None:
        """Means of the first and the last quarter of a training figure; None where it is no curve."""
        values = self.train(name)
        quarter = len(values) // 4
        if len(values) < MIN_LOGS or not np.isfinite(values).all():
            return None
        return float(values[:quarter].mean()), float(values[-quarter:].mean())


@dataclass(frozen=True)
class Evidence:
    """All that a rule may look at."""

    figures: Figures
    sft: Curves
    dpo: Curves
    generations: Written | None = None

    def stage(self, name: str) -> StageFigures | None:
        """The figures of a stage on the test pairs."""
        return self.figures.stages[name]
