"""Record the outcome of a run, so that lists of runs show it."""

from zenml import add_tags, get_step_context, log_metadata
from zenml.client import Client

from posttrain.orchestration.running_step.run_figures import (
    log_benchmarks,
    log_evaluation,
    log_generations,
    log_promotion,
)
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.orchestration.running_step.step_training import delete_training_checkpoints
from posttrain.orchestration.running_step.stored_files import check_cached
from posttrain.reporting.run_report import RunReport

LASTING = ("train_", "choose_point", "score_reference", "generate", "evaluate", "benchmark_", "promote")
"""Prefixes of the steps that run again only if something changed."""
UNCHANGED = "unchanged"


@step(enable_cache=False)
def conclude(report: RunReport) -> None:
    """Record whether the run computed anything new. If not, tag it `unchanged`.

    The files of all results that were served from the cache must still exist. Such a step has logged nothing to the MLflow run
    of this pipeline run, so its figures are logged here.
    """
    client = Client()
    run = client.get_pipeline_run(get_step_context().pipeline_run.id)
    check_cached(run.steps.values())
    lasting = {name: found for name, found in run.steps.items() if name.startswith(LASTING)}
    worked = [name for name, found in lasting.items() if not found.original_step_run_id]
    outcome = UNCHANGED if not worked else "trained" if any(n.startswith("train_") for n in worked) else "judged"
    origin = run.name
    if source := run.steps["evaluate"].original_step_run_id:
        origin = client.get_pipeline_run(client.get_run_step(source).pipeline_run_id).name
    with tracked(nested=False) as tracking:
        tracking.set_tags({"outcome": outcome, "figures_of": origin})
        if "evaluate" not in worked:
            log_evaluation(tracking, report.figures)
        if "generate" not in worked and report.generations:
            log_generations(tracking, report.generations)
        if report.benchmarks and "compare_benchmarks" not in worked:
            log_benchmarks(tracking, report.benchmarks)
        if "promote" not in worked:
            log_promotion(tracking, report.promotion)
    log_metadata(metadata={"outcome": outcome, "figures_of": origin}, run_id_name_or_prefix=run.id)
    delete_training_checkpoints(run)
    if outcome == UNCHANGED:
        add_tags(tags=[UNCHANGED], run=run.id)
