"""Inputs of the diagnosis rules: training curves, metrics and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from posttrain.evaluation.diagnosis.rule_intervals import Sample
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
    @property
    def repetition(self) -> Estimate: ...


class Written(Protocol):
    """Statistics of the answers to test prompts, by stage."""

    @property
    def stages(self) -> Mapping[str, WrittenBy]: ...


@dataclass(frozen=True)
class TrainingLog:
    """What a training logged."""

    history: History = field(default_factory=list)
    """`Checkpoint.history`; empty if the stage was not trained."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """`Manifest.metrics`: numbers of rows, and of rows that were truncated."""


class Curves:
    """The metrics that a trainer logged."""

    def __init__(self, log: TrainingLog, confidence: float) -> None:
        self.counts = log.counts
        self._confidence = confidence
        self._train = [entry for entry in log.history if "loss" in entry]
        self._validation = [entry for entry in log.history if "eval_loss" in entry]

    @property
    def n_rows(self) -> int | None:
        """Number of training rows; None if it is not known."""
        n = self.counts.get("n_pairs", self.counts.get("n_rows"))
        return None if n is None else int(n)

    @property
    def rows_per_log(self) -> float | None:
        """Number of training rows between two logs; None if it is not known."""
        epochs = self.train("epoch")
        if self.n_rows is None or len(epochs) < 2 or len(epochs) < len(self._train) or epochs[-1] <= epochs[0]:
            return None
        return self.n_rows * float(epochs[-1] - epochs[0]) / (len(epochs) - 1)

    def first(self, name: str) -> float | None:
        """Return a training metric before the first update; None if the first log covers several steps."""
        if not self._train or self._train[0].get("step", 1) > 1:
            return None
        return self._train[0].get(name)

    def train(self, name: str) -> np.ndarray:
        """Return all logged values of a training metric, in order."""
        return np.array([entry[name] for entry in self._train if name in entry])

    def validation(self, name: str) -> np.ndarray:
        """Return all values of a validation metric, in order."""
        return np.array([entry[f"eval_{name}"] for entry in self._validation if f"eval_{name}" in entry])

    def last(self, name: str, share: int = 4) -> Sample | None:
        """Return the last quarter, or another part, of a training metric, up to the weights that were kept.

        None if there are fewer than `MIN_LOGS` values or some are NaN or infinite.
        """
        kept = self.counts.get("kept_step", np.inf)
        values = np.array([e[name] for e in self._train if name in e and e.get("step", 0) <= kept])
        return self._part(values, slice(-(len(values) // share), None))

    def quarters(self, name: str) -> tuple[Sample, Sample] | None:
        """Return the first and the last quarter of a training metric, under the conditions of `last`."""
        values = self.train(name)
        first, last = (self._part(values, part) for part in (slice(len(values) // 4), slice(-(len(values) // 4), None)))
        return None if first is None or last is None else (first, last)

    def _part(self, values: np.ndarray, part: slice) -> Sample | None:
        if len(values) < MIN_LOGS or not np.isfinite(values).all():
            return None
        return Sample(values[part], self._confidence)


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

    def curves(self, stage: Literal["sft", "dpo"]) -> Curves:
        """Return the training curves of a stage."""
        return self.sft if stage == "sft" else self.dpo

    def answers(self) -> tuple[WrittenBy, WrittenBy] | None:
        """Return the statistics of SFT's and DPO's answers; None unless both answered."""
        stages = self.generations.stages if self.generations else {}
        return (stages["sft"], stages["dpo"]) if {"sft", "dpo"} <= stages.keys() else None


Check = Callable[[Evidence, float], Seen]
"""The condition of a rule: takes the evidence and the rule's limit."""
