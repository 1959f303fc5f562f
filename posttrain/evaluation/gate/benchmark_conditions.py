"""Condition of the gate about benchmarks: what preference training costs elsewhere, the alignment tax."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config import GateSection
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.labels import NAMES, points


def benchmark_conditions(
    benchmarks: BenchmarkFigures, newer: str, older: str, gate: GateSection
) -> Iterator[str]:
    """Yield the benchmarks on which the model got worse than its opponent."""
    for name, found in benchmarks.tasks.items():
        gain = found.comparisons[f"{newer}_vs_{older}"].gain
        if gain.high < -gate.max_benchmark_loss:
            yield (
                f"the score on the benchmark {name} ({found.metric}) fell against {NAMES[older]}: {points(gain)} points; "
                f"gate.max_benchmark_loss allows a loss of {100 * gate.max_benchmark_loss:.1f} points"
            )
