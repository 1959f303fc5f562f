"""Inputs of the diagnosis rules: training curves, metrics and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from posttrain.evaluation.figures import Figures, StageFigures
from posttrain.evaluation.intervals import Estimate

History = list[dict[str, float]]


Seen = tuple[str, dict[str, float]] | None
"""The title of a finding and the values it is based on; None if the rule does not apply or lacks data."""


MIN_SLICE_PAIRS = 20
"""Minimum number of pairs in a slice for the slice rule."""
MIN_LOGS = 8
"""Minimum number of logged steps for rules on training curves."""


class WrittenBy(Protocol):
    """Statistics of the answers of one stage that the rules use."""

    @property
    def stop_rate(self) -> Estimate: ...
    @property
    def n_tokens(self) -> Estimate: ...


class Written(Protocol):
    """Statistics of the answers to test prompts, by stage."""

    @property
    def stages(self) -> Mapping[str, WrittenBy]: ...


class Curves:
    """The metrics that a trainer logged."""

    def __init__(self, history: History) -> None:
        self._train = [entry for entry in history if "loss" in entry]
        self._validation = [entry for entry in history if "eval_loss" in entry]

    def train(self, name: str) -> np.ndarray:
        """Return all logged values of a training metric, in order."""
        return np.array([entry[name] for entry in self._train if name in entry])

    def validation(self, name: str) -> np.ndarray:
        """Return all values of a validation metric, in order."""
        return np.array([entry[f"eval_{name}"] for entry in self._validation if f"eval_{name}" in entry])

    def ends(self, name: str) -> tuple[float, float] | None:
        """Return the means of the first and last quarter of a training metric.

        None if there are fewer than `MIN_LOGS` values or some are NaN or infinite.
        """
        values = self.train(name)
        quarter = len(values) // 4
        if len(values) < MIN_LOGS or not np.isfinite(values).all():
            return None
        return float(values[:quarter].mean()), float(values[-quarter:].mean())


@dataclass(frozen=True)
class Evidence:
    """All inputs of a rule."""

    figures: Figures
    sft: Curves
    dpo: Curves
    generations: Written | None = None

    def stage(self, name: str) -> StageFigures | None:
        """Return the metrics of a stage on the test pairs."""
        return self.figures.stages[name]
