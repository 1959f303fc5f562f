"""Records of benchmarks: their items, and the scores of one model. They need no lm-evaluation-harness."""

from __future__ import annotations

from posttrain.config import BenchmarkSection
from posttrain.evaluation.intervals import Result


class TaskItems(Result):
    """The items of a benchmark, identified by digests."""

    section: BenchmarkSection
    documents: list[str]
    """Digest of each item's document and target. Items with the same digest count as one question."""
    digest: str
    """sha256 of all documents, targets, prompts and examples, and of the files that describe the task."""


class BenchmarkItems(Result):
    """The items of all benchmarks of a run."""

    tasks: dict[str, TaskItems]
    """By the name of the benchmark."""


class MetricScores(Result):
    """One metric of a model on a benchmark: a mean over items, from 0 to 1, of which more is better."""

    value: float
    std_error: float | None
    """As lm-evaluation-harness computes it; None for a group of tasks or a single item."""
    items: list[float]
    """Of each item, in the order of `TaskItems.documents`."""


class TaskScores(Result):
    """All metrics of a model on a benchmark that are means over items."""

    metrics: dict[str, MetricScores]
    """By the metric and filter, as lm-evaluation-harness names them: `exact_match,strict-match`."""
    n_cut: int
    """Number of prompts that were longer than the model's context, and lost their beginning."""


class BenchmarkScores(Result):
    """The scores of one model on all benchmarks."""

    digest: str | None
    """Digest of the model; None if there is none."""
    tasks: dict[str, TaskScores]
    """By the name of the benchmark; empty if there is no such model, or it is the base model itself."""
