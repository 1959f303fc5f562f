"""Let a model take the benchmarks."""

from typing import Annotated

from posttrain.config import ModelSection
from posttrain.evaluation.benchmarks import run_benchmarks as library
from posttrain.evaluation.benchmarks.benchmark_items import BenchmarkItems, BenchmarkScores
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.running_step.step import step


@step
def benchmark_model(
    items: BenchmarkItems, base: Base, checkpoint: Checkpoint | None, model: ModelSection, tokens_per_batch: int
) -> Annotated[BenchmarkScores, "benchmark_scores"]:
    """Return the scores of a checkpoint, or of the base model without one."""
    return library.benchmark_model(items, base, model, checkpoint, tokens_per_batch)
