"""What a collection works on: models of the registry, prompts of the run, and the store of answers and scores."""

from __future__ import annotations

from zenml.client import Client

from posttrain.config import CollectSection, DataSection, Lengths
from posttrain.data.prompt_loader import choose_by_hash, load_prompts, training_prompts
from posttrain.data.stored import Preferences
from posttrain.feedback.collecting.collection import CollectionPrompts
from posttrain.feedback.collecting.paid_work import PaidWork
from posttrain.feedback.collecting.sampled_answers import AnsweringModel
from posttrain.orchestration.model_versions.versions import find_version
from posttrain.orchestration.running_step.step_training import artifact_files

ANSWERS = "collected-answers"
"""Name of the folder in the artifact store."""


def answering_models(section: CollectSection, name: str) -> list[AnsweringModel]:
    """Return the models that a collection asks; without `collect.models`, the version of `name` in production.

    Raises:
        UserError: there is no such model.
    """
    versions = [find_version(model) for model in section.models or [f"{name}:production"]]
    return [AnsweringModel(found.name, found.checkpoint, found.model) for found in versions]


def prompts_of(
    preferences: Preferences, section: CollectSection, data: DataSection, lengths: Lengths
) -> CollectionPrompts:
    """Return the prompts of a collection: of its sources, else the preferences' training prompts. None of them is held out."""
    if not section.prompts:
        rows = choose_by_hash(training_prompts(preferences), section.n_prompts, section.seed)
        return CollectionPrompts(rows, lengths.max_prompt_length)
    prompts, report = load_prompts(section.prompts, preferences, data)
    rows = choose_by_hash(prompts, section.n_prompts, section.seed)
    return CollectionPrompts(rows, lengths.max_prompt_length, report.dropped)


def work_store() -> PaidWork:
    """Return the store of answers and scores, in the artifact store of the active stack."""
    return PaidWork(artifact_files, f"{Client().active_stack.artifact_store.path}/{ANSWERS}")
