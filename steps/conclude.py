"""Record the outcome of a run, so that lists of runs show it."""

from posttrain.orchestration.running_step.concluding import conclude_run
from posttrain.orchestration.running_step.run_figures import log_evaluation, log_generations, log_promotion
from posttrain.orchestration.running_step.step import step
from posttrain.reporting.run_report import RunReport
from posttrain.tracking import TrackedStage


@step(enable_cache=False)
def conclude(report: RunReport) -> None:
    """Record whether the run computed anything new. If not, tag it `unchanged`."""

    def log(run: TrackedStage, worked: list[str]) -> None:
        if "evaluate" not in worked:
            log_evaluation(run, report.figures)
        if "generate" not in worked and report.generations:
            log_generations(run, report.generations)
        if "promote" not in worked:
            log_promotion(run, report.promotion)

    conclude_run("evaluate", log)
