"""Several answers of a model to each prompt, stored in small parts as they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from datasets import Dataset
from pydantic import BaseModel, ConfigDict

from posttrain.chat.findings import Findings
from posttrain.chat.template import Chat
from posttrain.chat.tokenise import encode_rows
from posttrain.config import CollectSection, EvaluationSection, GenerationsSection, ModelSection
from posttrain.data.rows import canonical
from posttrain.evaluation.answers.generations import Writer, complete
from posttrain.feedback.collecting.paid_work import PaidWork
from posttrain.models.checkpoint import Checkpoint
from posttrain.models.loading import load_chat, load_model

PROMPTS_PER_PART = 64


class SampledAnswer(BaseModel):
    """One answer of a model."""

    model_config = ConfigDict(frozen=True)

    model: str
    """Name and version of the model."""
    digest: str
    """Digest of its checkpoint."""
    text: str
    n_tokens: int
    stopped: bool
    """Whether the model ended it within `max_new_tokens`."""
    seed: int
    """Seed of the part that it was drawn in."""
    at: str
    """When it was drawn, in UTC."""


@dataclass(frozen=True)
class AnsweringModel:
    """A trained model that answers prompts."""

    name: str
    checkpoint: Checkpoint
    model: ModelSection
    """Settings that load it, with its base."""

    @cached_property
    def chat(self) -> Chat:
        """Its tokenizer and template."""
        return load_chat(self.checkpoint.manifest.base, self.model, self.checkpoint)

    @cached_property
    def writer(self) -> Writer:
        """The loaded model. It is loaded only where an answer is not stored yet."""
        return Writer(load_model(self.checkpoint.manifest.base, self.model, self.checkpoint), self.chat, self.model)


def sample_answers(
    model: AnsweringModel, rows: list[dict[str, Any]], section: CollectSection, max_prompt_length: int, work: PaidWork
) -> tuple[dict[str, list[SampledAnswer]], dict[str, int]]:
    """Return the model's answers by id of the prompt, and how many prompts it cannot answer, by reason.

    Each part of `PROMPTS_PER_PART` prompts has a seed of its own, from the seed of the settings and the prompts in it, so that
    a part does not depend on the parts before it.

    Args:
        max_prompt_length: prompts with more tokens are left out.
        work: where parts are stored.
    """
    findings = Findings()
    encoded = encode_rows(model.chat, Dataset.from_list(rows), (), findings) if rows else []
    fitting = [(row.id, row.prompt_ids) for row in encoded if len(row.prompt_ids) <= max_prompt_length]
    left_out = findings.counts() | {"prompt_too_long": len(encoded) - len(fitting)}
    parts = [fitting[start : start + PROMPTS_PER_PART] for start in range(0, len(fitting), PROMPTS_PER_PART)]
    found: dict[str, list[SampledAnswer]] = {}
    for i, part in enumerate(parts, start=1):
        answers = _part(
            model, [ids for _, ids in part], section, (work, f"Answers of {model.name}, part {i} of {len(parts)}")
        )
        found |= {row_id: drawn for (row_id, _), drawn in zip(part, answers, strict=True)}
    return found, {reason: n for reason, n in left_out.items() if n}


def _part(
    model: AnsweringModel, prompts: list[list[int]], section: CollectSection, place: tuple[PaidWork, str]
) -> list[list[SampledAnswer]]:
    """Return the stored answers to some prompts; draw and store them if there are none.

    Args:
        place: where they are stored, and the text of the progress bar.
    """
    work, label = place
    manifest, n = model.checkpoint.manifest, section.n_answers
    drawn_by = section.model_dump(include={"n_answers", "temperature", "top_p", "max_new_tokens", "seed"})
    key = ("answers", manifest.digest, manifest.base.digest, model.chat.digest, drawn_by, prompts)
    stored = work.get(*key)
    if stored is None:
        seed = int.from_bytes(hashlib.sha256(canonical(list(key))).digest()[:4])
        settings = EvaluationSection(
            tokens_per_batch=section.tokens_per_batch,
            seed=seed,
            generations=GenerationsSection(
                max_new_tokens=section.max_new_tokens, temperature=section.temperature, top_p=section.top_p
            ),
        )
        repeated = [prompt for prompt in prompts for _ in range(n)]
        completed = complete(model.writer, repeated, settings, label)
        stored = {"seed": seed, "at": _now(), "answers": [_text(model.chat, *answer) for answer in completed]}
        work.put(stored, *key)
    about = {"model": model.name, "digest": manifest.digest, "seed": stored["seed"], "at": stored["at"]}
    answers = [SampledAnswer(**about, **answer) for answer in stored["answers"]]
    return [answers[start : start + n] for start in range(0, len(answers), n)]


def _text(chat: Chat, ids: Sequence[int], stopped: bool) -> dict[str, Any]:
    text = str(chat.tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return {"text": text, "n_tokens": len(ids), "stopped": stopped}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
