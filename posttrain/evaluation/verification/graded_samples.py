"""Many answers of one model to each of some test prompts, among which a verifier chooses."""

from __future__ import annotations

import hashlib
from pathlib import Path

from posttrain.chat.template import Messages
from posttrain.chat.tokens import PairTokens, check_chat
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.demo import pairs as demo
from posttrain.data.stored import Preferences
from posttrain.evaluation.answers.generations import Writer, choose_prompts, complete
from posttrain.evaluation.intervals import Result
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import load_chat, load_model


class SampledQuestion(Result):
    """A prompt and the answers to it."""

    prompt: Messages
    answers: list[str]
    true_rewards: list[float]
    """By the hidden reward."""


class SampledAnswers(Result):
    """Answers of one model."""

    questions: list[SampledQuestion]
    temperature: float
    digest: str
    """Of the model."""

    @property
    def answers_digest(self) -> str:
        """sha256 of all answers."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `answers.json` into a folder."""
        (folder / "answers.json").write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> SampledAnswers:
        """Return what `save` wrote."""
        return cls.model_validate_json((folder / "answers.json").read_text(encoding="utf-8"))


def sample_answers(
    preferences: Preferences,
    tokens: PairTokens,
    writer: tuple[Base, ModelSection, Checkpoint],
    section: EvaluationSection,
    n_answers: int,
) -> SampledAnswers:
    """Return `n_answers` answers to each of `section.generations.n` test prompts whose answers can be graded.

    Answers can be graded by the demo's hidden reward. For other data there are none.

    Args:
        tokens: of the preferences.
        writer: base, settings and checkpoint of the model that answers.
        section: its `generations` says how many prompts, how long the answers, and at which temperature they are drawn.
    """
    base, model, checkpoint = writer
    graded = preferences.test.filter(lambda row: row["true_margin"] is not None)
    prompts = choose_prompts(graded, section.generations.n if n_answers > 1 else 0)
    chat = load_chat(base, model, checkpoint)
    check_chat(tokens, chat, "the model that answers")
    test = tokens.rows("test")
    prompt_ids = dict(zip(test["id"], test["prompt_ids"], strict=True))
    asked = [row for row in prompts if row["id"] in prompt_ids]
    questions = []
    if asked:
        policy = Writer(load_model(base, model, checkpoint), chat, model)
        repeated = [prompt_ids[row["id"]] for row in asked for _ in range(n_answers)]
        found = complete(policy, repeated, section, "answers to choose from")
        texts = [str(chat.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids, _ in found]
        for i, row in enumerate(asked):
            own = texts[i * n_answers : (i + 1) * n_answers]
            rewards = [demo.reward(row["prompt"][-1]["content"], text) for text in own]
            questions.append(SampledQuestion(prompt=row["prompt"], answers=own, true_rewards=rewards))
    return SampledAnswers(questions=questions, temperature=section.generations.temperature, digest=checkpoint.digest)
