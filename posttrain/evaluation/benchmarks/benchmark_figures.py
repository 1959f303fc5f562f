"""Base, SFT, DPO and the champion on the same items of each benchmark, with paired differences and intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from posttrain.config import EvaluationSection
from posttrain.errors import UserError
from posttrain.evaluation.benchmarks.benchmark_items import BenchmarkItems, BenchmarkScores, TaskItems, TaskScores
from posttrain.evaluation.clustered.gains import Gain, paired_gain
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.figures import STAGES
from posttrain.evaluation.intervals import Estimate, Result, bootstrap_mean, cluster_share


class StageScore(Result):
    """The score of one model on a benchmark."""

    score: Estimate
    """Mean over the items."""
    std_error: float | None
    """As lm-evaluation-harness computes it; None for a group of tasks or a single item."""
    n_cut: int
    """Number of prompts that lost their beginning, as they were longer than the model's context."""


class BenchmarkComparison(Result):
    """Two models on the same items of a benchmark."""

    gain: Gain
    """Score of the newer model minus that of the older one."""
    n_gained: int
    """Number of items on which the newer model scores higher."""
    n_lost: int
    """Number of items on which the newer model scores lower."""


class TaskFigures(Result):
    """All models on one benchmark."""

    metric: str
    """The metric that is compared, as lm-evaluation-harness names it."""
    n_items: int
    n_questions: int
    """Number of different items: the unit of all intervals and tests."""
    stages: dict[str, StageScore]
    """By stage, those that the run has."""
    comparisons: dict[str, BenchmarkComparison]
    """`sft_vs_base`, `dpo_vs_sft`, `dpo_vs_base`, `dpo_vs_champion` (`sft_vs_champion` where SFT is the newest)."""
    other_metrics: dict[str, dict[str, float]]
    """The other metrics of the task, without intervals, by metric and stage."""


class BenchmarkFigures(Result):
    """All models on all benchmarks."""

    tasks: dict[str, TaskFigures]
    """By the name of the benchmark."""
    confidence: float
    digests: dict[str, str]
    """Of the items of each benchmark and of each model."""

    @property
    def digest(self) -> str:
        """sha256 of all figures."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def key_figures(self) -> dict[str, float]:
        """Return the scores as logged to MLflow: `bench/gsm8k/dpo`."""
        return {
            f"bench/{name}/{stage}": found.score.value
            for name, task in self.tasks.items()
            for stage, found in task.stages.items()
        }


def compare_benchmarks(
    items: BenchmarkItems, scores: Mapping[str, BenchmarkScores], section: EvaluationSection
) -> BenchmarkFigures:
    """Return the figures of all models on all benchmarks.

    Args:
        scores: by stage. SFT without scores is the base model itself; a champion without a digest does not exist.

    Raises:
        UserError: no metric that is asked for exists for all models.
    """
    found = {stage: scores[stage] for stage in STAGES if stage in scores and scores[stage].digest}
    tasks = {stage: of_model.tasks or found["base"].tasks for stage, of_model in found.items()}
    figures = {
        name: _task_figures(recorded, {stage: of_stage[name] for stage, of_stage in tasks.items()}, section)
        for name, recorded in items.tasks.items()
    }
    digests = {f"benchmark {name}": recorded.digest for name, recorded in items.tasks.items()}
    digests |= {stage: of_model.digest for stage, of_model in found.items() if of_model.digest}
    return BenchmarkFigures(tasks=figures, confidence=section.confidence, digests=digests)


def _task_figures(recorded: TaskItems, scores: Mapping[str, TaskScores], section: EvaluationSection) -> TaskFigures:
    metric = _choose_metric(recorded, scores)
    clusters = Clusters.of(recorded.documents)
    values = {stage: np.array(found.metrics[metric].items) for stage, found in scores.items()}
    stages = {
        stage: StageScore(
            score=_share(values[stage], clusters, section),
            std_error=found.metrics[metric].std_error,
            n_cut=found.n_cut,
        )
        for stage, found in scores.items()
    }
    comparisons = {}
    for newer, older in _contests(scores):
        differences = values[newer] - values[older]
        comparisons[f"{newer}_vs_{older}"] = BenchmarkComparison(
            gain=paired_gain(differences, clusters, section.confidence),
            n_gained=int((differences > 0).sum()),
            n_lost=int((differences < 0).sum()),
        )
    others = {
        name: {stage: found.metrics[name].value for stage, found in scores.items() if name in found.metrics}
        for name in dict.fromkeys(name for found in scores.values() for name in found.metrics)
        if name != metric
    }
    return TaskFigures(
        metric=metric,
        n_items=clusters.n_rows,
        n_questions=clusters.n,
        stages=stages,
        comparisons=comparisons,
        other_metrics=others,
    )


def _choose_metric(recorded: TaskItems, scores: Mapping[str, TaskScores]) -> str:
    """Return the metric that the settings ask for, or the first one that all models have."""
    first, *others = scores.values()
    shared = [name for name in first.metrics if all(name in other.metrics for other in others)]
    asked = recorded.section.metric
    for name in shared:
        if asked is None or asked in (name, name.split(",")[0]):
            return name
    raise UserError(
        f"evaluation.benchmarks: {recorded.section.name} has no metric {asked!r} for all models that is a mean over items: set "
        f"metric to one of {', '.join(shared) or 'none'}"
    )


def _contests(stages: Mapping[str, TaskScores]) -> Iterator[tuple[str, str]]:
    """Yield which models are compared: each with the one before it, and the newest with the base and the champion."""
    newest = next(stage for stage in ("dpo", "sft", "base") if stage in stages)
    wanted = [("sft", "base"), ("dpo", "sft"), (newest, "base"), (newest, "champion")]
    for newer, older in dict.fromkeys(wanted):
        if newer in stages and older in stages and newer != older:
            yield newer, older


def _share(values: np.ndarray, clusters: Clusters, section: EvaluationSection) -> Estimate:
    if np.isin(values, (0.0, 0.5, 1.0)).all():
        return cluster_share(values, clusters, section.confidence)
    found = bootstrap_mean(values, section, clusters)
    return Estimate(value=found.value, low=max(0.0, found.low), high=min(1.0, found.high))
