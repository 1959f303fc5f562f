"""Put everything that the run found on one page."""

from typing import Annotated

from zenml import get_step_context
from zenml.client import Client

from posttrain.config import RunConfig
from posttrain.data.report import DataReport
from posttrain.evaluation.answers.generations import Generations
from posttrain.evaluation.benchmarks.benchmark_figures import BenchmarkFigures
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.scoring import Evaluation
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.caching.cache_key import code_digest
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.orchestration.spent import costs_of
from posttrain.reporting.drawing import file_name
from posttrain.reporting.pages.run_page import report_page
from posttrain.reporting.plots import draw
from posttrain.reporting.run_report import Lineage, RunReport
from posttrain.tracking import package_versions


@step
def report(
    data_report: DataReport,
    base: Base,
    sft_checkpoint: Checkpoint,
    dpo_checkpoint: Checkpoint | None,
    evaluation: Evaluation,
    generations: Generations,
    benchmarks: BenchmarkFigures | None,
    promotion: Promotion,
) -> Annotated[RunReport, "report"]:
    """Return the verdict with its evidence, and the lineage of the models."""
    run = get_step_context().pipeline_run
    checkpoints = {"sft": sft_checkpoint} | ({"dpo": dpo_checkpoint} if dpo_checkpoint else {})
    result = RunReport(
        lineage=Lineage(
            run=run.name,
            config=RunConfig.model_validate((run.config.parameters or {})["config"]).model_dump(mode="json"),
            data=data_report.digest,
            code=code_digest(),
            versions=package_versions(),
            base=base,
            models={stage: checkpoint.digest for stage, checkpoint in checkpoints.items()},
        ),
        data=data_report,
        histories={stage: checkpoint.history for stage, checkpoint in checkpoints.items()},
        figures=evaluation.figures,
        generations=generations,
        benchmarks=benchmarks,
        promotion=promotion,
        costs=costs_of(Client().get_pipeline_run(run.id)),
    )
    with tracked(nested=False) as tracking:
        pictures = draw(result)
        tracking.log_text(report_page(result, pictures), "report/report.html")
        tracking.log_text(result.model_dump_json(indent=1), "report/report.json")
        for caption, picture in pictures.items():
            tracking.log_text(str(picture), f"figures/{file_name(caption)}.svg")
    return result
