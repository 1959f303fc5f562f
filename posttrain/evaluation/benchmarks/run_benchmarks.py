"""The scores of one model on all benchmarks. The model is loaded once, as for every other evaluation."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from posttrain.chat.template import Chat
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.evaluation.benchmarks.benchmark_items import BenchmarkItems, BenchmarkScores, TaskScores
from posttrain.evaluation.benchmarks.harness import check_installed, documents_of, run_task, scores_of
from posttrain.evaluation.evaluated_models import section_of_champion
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import Model, load_chat, load_model

if TYPE_CHECKING:
    from posttrain.evaluation.benchmarks.loaded_model import LoadedModel


@dataclass(frozen=True)
class Candidate:
    """A loaded model that takes benchmarks."""

    model: Model
    chat: Chat
    section: ModelSection
    """How it was loaded."""


def benchmark_model(
    items: BenchmarkItems, base: Base, section: ModelSection, checkpoint: Checkpoint | None, tokens_per_batch: int
) -> BenchmarkScores:
    """Return the scores of a checkpoint of this run, or of the base model.

    Args:
        checkpoint: None for the base model. A checkpoint that is the base model itself is not scored again.

    Raises:
        UserError: a benchmark has changed since its items were recorded, or has no metric that can be compared.
    """
    if checkpoint is not None and checkpoint.manifest.kind == "base":
        return BenchmarkScores(digest=checkpoint.digest, tasks={})
    candidate = Candidate(
        load_model(base, section, checkpoint, frozen=True), load_chat(base, section, checkpoint), section
    )
    tasks = score_benchmarks(items, candidate, tokens_per_batch)
    return BenchmarkScores(digest=checkpoint.digest if checkpoint else base.digest, tasks=tasks)


def benchmark_champion(
    items: BenchmarkItems, base: Base, section: ModelSection, champion: Checkpoint | None, tokens_per_batch: int
) -> BenchmarkScores:
    """Return the scores of the model in production, with its own base, tokenizer and template."""
    if champion is None:
        return BenchmarkScores(digest=None, tasks={})
    own = section_of_champion(champion, base, section)
    return benchmark_model(items, champion.manifest.base, own, champion, tokens_per_batch)


def score_benchmarks(items: BenchmarkItems, candidate: Candidate, tokens_per_batch: int) -> dict[str, TaskScores]:
    """Return the scores of a loaded model by the name of the benchmark.

    Raises:
        UserError: a benchmark has changed since its items were recorded, or has no metric that can be compared.
    """
    check_installed()
    tasks = {}
    for name, recorded in items.tasks.items():
        with torch.random.fork_rng():
            lm = _harness_model(candidate, tokens_per_batch)
            found = run_task(lm, recorded.section)
        if documents_of(found) != recorded.documents:
            raise UserError(
                f"evaluation.benchmarks: the items of {name} changed while the run was going on: run again, and the items are read "
                "again"
            )
        tasks[name] = scores_of(found, recorded.section, lm.n_cut)
    return tasks


def _harness_model(candidate: Candidate, tokens_per_batch: int) -> LoadedModel:
    """Return the loaded model as one of the harness."""
    from posttrain.evaluation.benchmarks.loaded_model import LoadedModel

    model, chat = candidate.model, candidate.chat
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns that the settings of a loaded model are not its own
    # The model's own settings may contain penalties and temperatures chosen for its base.
    model.generation_config = GenerationConfig(eos_token_id=chat.stop_ids, pad_token_id=chat.tokenizer.pad_token_id)
    return LoadedModel(model, chat, candidate.section, tokens_per_batch)
