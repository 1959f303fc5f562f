"""Let the model in production take the benchmarks."""

from typing import Annotated

from posttrain.config import ModelSection
from posttrain.evaluation.benchmarks import run_benchmarks as library
from posttrain.evaluation.benchmarks.benchmark_items import BenchmarkItems, BenchmarkScores
from posttrain.evaluation.gate.champion import Champion
from posttrain.models.checkpoint import Base
from posttrain.orchestration.model_versions.champion_checkpoint import champion_checkpoint
from posttrain.orchestration.running_step.step import step


@step
def benchmark_champion(
    items: BenchmarkItems, base: Base, champion: Champion, model: ModelSection, tokens_per_batch: int
) -> Annotated[BenchmarkScores, "champion_benchmark_scores"]:
    """Return the scores of the champion, with its own base, tokenizer and template; none without a champion."""
    return library.benchmark_champion(items, base, model, champion_checkpoint(champion), tokens_per_batch)
