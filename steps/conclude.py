"""Record the outcome of a run, so that lists of runs show it."""

from typing import Any

from zenml import add_tags, get_step_context, log_metadata
from zenml.client import Client

from posttrain.orchestration.finished_runs import maker_of
from posttrain.orchestration.gate_ledger import spent_looks
from posttrain.orchestration.history.model_history import history_of
from posttrain.orchestration.history.model_runs import model_of
from posttrain.orchestration.running_step.alerts import post
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
from posttrain.orchestration.spent import costs_of
from posttrain.reporting.pages.history_page import history_page
from posttrain.reporting.past_runs.run_record import RECORD, record_of
from posttrain.reporting.run_report import RunReport

LASTING = ("train_", "choose_point", "score_reference", "generate", "evaluate", "benchmark_", "promote")
"""Prefixes of the steps that run again only if something changed."""
UNCHANGED = "unchanged"
N_LISTED = 100
"""Newest runs in the history that is stored with each run."""


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
    origin = maker_of(run.steps["evaluate"]) or run.name
    name = model_of(run)
    record = record_of(report, costs_of(run), maker_of(run.steps["promote"]), spent_looks(name, report.figures))
    found: dict[str, Any] = {"outcome": outcome, "figures_of": origin, RECORD: record.model_dump(mode="json")}
    log_metadata(metadata=found, run_id_name_or_prefix=run.id)
    with tracked(nested=False) as tracking:
        tracking.log_metrics(record.costs.metrics())
        tracking.log_text(history_page(history_of(name, N_LISTED)), "history.html")
        tracking.set_tags({"outcome": outcome, "figures_of": origin})
        if "evaluate" not in worked:
            log_evaluation(tracking, report.figures)
        if "generate" not in worked and report.generations:
            log_generations(tracking, report.generations)
        if report.benchmarks and "compare_benchmarks" not in worked:
            log_benchmarks(tracking, report.benchmarks)
        if "promote" not in worked:
            log_promotion(tracking, report.promotion)
    delete_training_checkpoints(run)
    if outcome == UNCHANGED:
        add_tags(tags=[UNCHANGED], run=run.id)
    post(record.outcome, run, record.line())
