"""Find out which items the benchmarks have."""

from typing import Annotated

from posttrain.config import BenchmarkSection
from posttrain.evaluation.benchmarks import harness as library
from posttrain.evaluation.benchmarks.benchmark_items import BenchmarkItems
from posttrain.orchestration.running_step.step import step


@step(enable_cache=False)
def load_benchmarks(benchmarks: list[BenchmarkSection]) -> Annotated[BenchmarkItems, "benchmark_items"]:
    """Return the items, before anything is trained. Never cached: the data of a task may have changed."""
    return library.load_items(benchmarks)
