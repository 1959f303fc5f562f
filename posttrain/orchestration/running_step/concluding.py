"""Record the outcome of a run, so that lists of runs show it."""

from collections.abc import Callable

from zenml import add_tags, get_step_context, log_metadata
from zenml.client import Client

from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.orchestration.running_step.step_training import delete_training_checkpoints
from posttrain.orchestration.running_step.stored_files import check_cached
from posttrain.tracking import TrackedStage

LASTING = ("train_", "choose_point", "score_reference", "generate", "sample_answers", "evaluate", "promote")
"""Prefixes of the steps that run again only if something changed."""
UNCHANGED = "unchanged"


def conclude_run(evaluation: str, log: Callable[[TrackedStage, list[str]], None]) -> None:
    """Record whether the current run computed anything new. If not, tag it `unchanged`.

    The files of all results that were served from the cache must still exist. Such a step has logged nothing to the MLflow run
    of this pipeline run, so its figures are logged here.

    Args:
        evaluation: name of the step whose figures the run shows.
        log: logs the figures of cached steps, given the names of those that worked.
    """
    client = Client()
    run = client.get_pipeline_run(get_step_context().pipeline_run.id)
    check_cached(run.steps.values())
    lasting = {name: found for name, found in run.steps.items() if name.startswith(LASTING)}
    worked = [name for name, found in lasting.items() if not found.original_step_run_id]
    outcome = UNCHANGED if not worked else "trained" if any(n.startswith("train_") for n in worked) else "judged"
    origin = run.name
    if source := run.steps[evaluation].original_step_run_id:
        origin = client.get_pipeline_run(client.get_run_step(source).pipeline_run_id).name
    with tracked(nested=False) as tracking:
        tracking.set_tags({"outcome": outcome, "figures_of": origin})
        log(tracking, worked)
    log_metadata(metadata={"outcome": outcome, "figures_of": origin}, run_id_name_or_prefix=run.id)
    delete_training_checkpoints(run)
    if outcome == UNCHANGED:
        add_tags(tags=[UNCHANGED], run=run.id)
