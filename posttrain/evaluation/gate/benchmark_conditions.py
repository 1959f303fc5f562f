"""Condition of the gate about benchmarks: what preference training costs elsewhere, the alignment tax."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.config import GateSection
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.clustered.gains import holm
from posttrain.evaluation.labels import NAMES, points


def benchmark_conditions(benchmarks: BenchmarkFigures, newer: str, older: str, gate: GateSection) -> Iterator[str]:
    """Yield the benchmarks on which the model got worse than its opponent, with Holm's correction for their number."""
    gains = {name: found.comparisons[f"{newer}_vs_{older}"].gain for name, found in benchmarks.tasks.items()}
    p_values = holm([gain.p_beyond(-gate.max_benchmark_loss) for gain in gains.values()])
    for (name, gain), p_value in zip(gains.items(), p_values, strict=True):
        if gain.high < -gate.max_benchmark_loss and p_value <= 1 - benchmarks.confidence:
            yield (
                f"the score on the benchmark {name} ({benchmarks.tasks[name].metric}) fell against {NAMES[older]}: "
                f"{points(gain)} points; "
                f"gate.max_benchmark_loss allows a loss of {100 * gate.max_benchmark_loss:.1f} points"
            )
