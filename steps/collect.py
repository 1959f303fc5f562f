"""Collect preference pairs from answers of trained models."""

from typing import Annotated

from posttrain.config import CollectSection, DataSection, Lengths
from posttrain.data.prompt_loader import held_out_keys
from posttrain.data.stored import Preferences
from posttrain.feedback.collecting import collection as library
from posttrain.feedback.collecting.collected_pairs import CollectedPreferences
from posttrain.feedback.collecting.document_pairs import collect_from_documents
from posttrain.orchestration.collecting_runs.answering import answering_models, prompts_of, work_store
from posttrain.orchestration.running_step.run_figures import log_collection
from posttrain.orchestration.running_step.step import step
from posttrain.orchestration.running_step.step_tracking import tracked
from posttrain.reporting.pages.collected_page import collected_page


@step(enable_cache=False)
def collect(
    preferences: Preferences,
    section: CollectSection,
    data: DataSection,
    lengths: Lengths,
    name: str,
) -> Annotated[CollectedPreferences, "collected_preferences"]:
    """Return the collected pairs. Never cached: models and judges may have changed. Answers and scores are stored one by one."""
    with tracked(nested=False) as run:
        if section.documents:
            collected = collect_from_documents(section, held_out_keys(preferences), work_store())
        else:
            prompts = prompts_of(preferences, section, data, lengths)
            collected = library.collect(answering_models(section, name), prompts, section, work_store())
        log_collection(run, collected.report)
        run.log_text(collected_page(collected.table, collected.report.model_dump()), "collected.html")
    return collected
