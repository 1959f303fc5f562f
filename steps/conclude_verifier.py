"""Record the outcome of a run of verifier_pipeline."""

from posttrain.orchestration.running_step.concluding import conclude_run
from posttrain.orchestration.running_step.run_figures import log_promotion, log_verifier
from posttrain.orchestration.running_step.step import step
from posttrain.reporting.verifier_report import VerifierReport
from posttrain.tracking import TrackedStage


@step(enable_cache=False)
def conclude_verifier(report: VerifierReport) -> None:
    """Record whether the run computed anything new. If not, tag it `unchanged`."""

    def log(run: TrackedStage, worked: list[str]) -> None:
        if "evaluate_verifier" not in worked:
            log_verifier(run, report.figures)
        if "promote_verifier" not in worked:
            log_promotion(run, report.promotion)

    conclude_run("evaluate_verifier", log)
