"""Put everything that a run of verifier_pipeline found on one page."""

from typing import Annotated

from zenml import get_step_context

from posttrain.config import RunConfig
from posttrain.data.report import DataReport
from posttrain.evaluation.gate.decision import Promotion
from posttrain.evaluation.verification.verifier_evaluation import VerifierEvaluation
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.orchestration.caching.cache_key import code_digest
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.reporting.pages.verifier_page import verifier_page
from posttrain.reporting.run_report import Lineage
from posttrain.reporting.verifier_report import VerifierReport
from posttrain.tracking import package_versions


@step
def report_verifier(
    data_report: DataReport,
    base: Base,
    sft_checkpoint: Checkpoint,
    verifier_checkpoint: Checkpoint,
    evaluation: VerifierEvaluation,
    promotion: Promotion,
) -> Annotated[VerifierReport, "verifier_report"]:
    """Return the verdict with its evidence, and the lineage of the verifier."""
    run = get_step_context().pipeline_run
    result = VerifierReport(
        lineage=Lineage(
            run=run.name,
            config=RunConfig.model_validate((run.config.parameters or {})["config"]).model_dump(mode="json"),
            data=data_report.digest,
            code=code_digest(),
            versions=package_versions(),
            base=base,
            models={"sft": sft_checkpoint.digest, "verifier": verifier_checkpoint.digest},
        ),
        data=data_report,
        history=verifier_checkpoint.history,
        figures=evaluation.figures,
        promotion=promotion,
    )
    with tracked(nested=False) as tracking:
        tracking.log_text(verifier_page(result), "report/report.html")
        tracking.log_text(result.model_dump_json(indent=1), "report/report.json")
    return result
