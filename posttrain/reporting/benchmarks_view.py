"""The benchmarks of a run, as the page of the run shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures, TaskFigures
from posttrain.evaluation.figures import STAGES as ORDER
from posttrain.evaluation.labels import ABSENT, STAGES, comparison, percent, points
from posttrain.reporting.html import Table


def benchmarks_view(benchmarks: BenchmarkFigures) -> dict[str, Any]:
    """Return the tables and notes about all benchmarks."""
    stages = [stage for stage in ORDER if any(stage in task.stages for task in benchmarks.tasks.values())]
    names = [STAGES[stage] for stage in stages]
    scores = [
        [name, task.metric, task.n_items, *(_score(task, stage) for stage in stages)]
        for name, task in benchmarks.tasks.items()
    ]
    gains = [
        [name, comparison(of), points(found.gain), found.n_gained, found.n_lost, f"{found.gain.p_value:.2g}"]
        for name, task in benchmarks.tasks.items()
        for of, found in task.comparisons.items()
    ]
    others = [
        [name, metric, *(f"{100 * found[stage]:.1f}" if stage in found else ABSENT for stage in stages)]
        for name, task in benchmarks.tasks.items()
        for metric, found in task.other_metrics.items()
    ]
    return {
        "intro": f"Scores by lm-evaluation-harness on the same items, in % with {benchmarks.confidence:.0%} intervals in brackets.",
        "scores": Table(["benchmark", "metric", "items", *names], scores),
        "gains": Table(["benchmark", "", "gain, points", "items gained", "items lost", "p (exact)"], gains),
        "others": Table(["benchmark", "metric", *names], others) if others else None,
        "notes": list(_notes(benchmarks)),
    }


def _score(task: TaskFigures, stage: str) -> str:
    return percent(task.stages[stage].score if stage in task.stages else None)


def _notes(benchmarks: BenchmarkFigures) -> Iterator[str]:
    for name, task in benchmarks.tasks.items():
        errors = [
            f"{STAGES[stage]} {100 * found.std_error:.1f}"
            for stage, found in task.stages.items()
            if found.std_error is not None
        ]
        if errors:
            yield f"{name}: standard errors by lm-evaluation-harness, in points: {', '.join(errors)}."
        if task.n_questions < task.n_items:
            yield (
                f"{name}: {task.n_items - task.n_questions} items repeat another one, so intervals and tests count "
                f"{task.n_questions} questions."
            )
        cut = [f"{STAGES[stage]} {found.n_cut}" for stage, found in task.stages.items() if found.n_cut]
        if cut:
            yield f"{name}: prompts longer than the model's context, which lost their beginning: {', '.join(cut)}."
