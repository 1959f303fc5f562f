"""Compare the models on the benchmarks."""

from typing import Annotated

from posttrain.config import EvaluationSection
from posttrain.evaluation.benchmarks import benchmark_figures as library
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.benchmarks.benchmark_items import BenchmarkItems, BenchmarkScores
from posttrain.orchestration.running_step.run_figures import log_benchmarks
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked


@step
def compare_benchmarks(
    items: BenchmarkItems,
    base: BenchmarkScores,
    sft: BenchmarkScores,
    dpo: BenchmarkScores | None,
    champion: BenchmarkScores,
    evaluation: EvaluationSection,
) -> Annotated[BenchmarkFigures, "benchmarks"]:
    """Return the scores of all models on the same items, with what was gained and lost."""
    scores = {"base": base, "sft": sft, "champion": champion} | ({"dpo": dpo} if dpo else {})
    with tracked(nested=False) as run:
        figures = library.compare_benchmarks(items, scores, evaluation)
        log_benchmarks(run, figures)
    return figures
