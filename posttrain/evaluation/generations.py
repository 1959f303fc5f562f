"""Answers of SFT and DPO to the same test prompts, side by side, and which of the two answers better."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import GenerationConfig

from posttrain.chat.template import Chat, Messages
from posttrain.chat.tokens import PairTokens, check_chat
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.demo import pairs as demo
from posttrain.data.preferences import Preferences
from posttrain.evaluation.evaluated_models import EvaluatedModels
from posttrain.evaluation.intervals import Estimate, Result, bootstrap_mean, wilson
from posttrain.evaluation.judge import Contest, Judgement, WinRate, judge_contests, win_rate
from posttrain.evaluation.labels import ANSWERS
from posttrain.evaluation.uncertainty.clusters import Clusters, conversation_key
from posttrain.models.loading import Model, load_chat, load_model
from posttrain.models.precision import autocast
from posttrain.progress import progress_bar


class Response(Result):
    """Answer of a model."""

    text: str
    """Without the stop token."""
    n_tokens: int
    """Number of generated tokens, without the stop token."""
    stopped: bool
    """Whether a stop token was generated within `max_new_tokens`."""
    repetition: float
    """Share of its token 4-grams that occurred earlier in it; 0 if it has fewer than 4 tokens."""
    true_reward: float | None
    """By the hidden reward (demo only)."""


class Exchange(Result):
    """A prompt and the answer of each model."""

    id: str
    """Id of the test pair that the prompt is from."""
    source: str
    prompt: Messages
    responses: dict[str, Response]
    """By stage: `sft`, `dpo`."""


class StageGenerations(Result):
    """Figures on all answers of one model."""

    stop_rate: Estimate
    """Share that ended with a stop token."""
    n_tokens: Estimate
    """Mean."""
    repetition: Estimate
    """Mean share of repeated 4-grams (rep-4 of Welleck et al. 2020)."""
    distinct_2: float
    """Distinct token bigrams over all token bigrams of all answers (Li et al. 2016). Low if the answers are alike."""
    true_reward: Estimate | None
    """Mean (demo only)."""


class Generations(Result):
    """All answers, and the figures computed from them."""

    max_new_tokens: int
    temperature: float
    seed: int
    stages: dict[str, StageGenerations]
    """By stage: `sft` and, if DPO was trained, `dpo`."""
    by_true_reward: WinRate | None
    """Win rate of DPO over SFT by the hidden reward (demo only)."""
    by_judge: Judgement | None
    """Win rate of DPO over SFT by a judge model, if one is set."""
    exchanges: list[Exchange]
    digests: dict[str, str]
    """Of the models."""

    def save(self, folder: Path) -> None:
        """Write `generations.json` into a folder."""
        (folder / "generations.json").write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Generations:
        """Return what `save` wrote."""
        return cls.model_validate_json((folder / "generations.json").read_text(encoding="utf-8"))


def generate(
    preferences: Preferences, tokens: PairTokens, models: EvaluatedModels, section: EvaluationSection
) -> Generations:
    """Return the answers of SFT and DPO to the same test prompts.

    Args:
        tokens: of the preferences. Prompts are cut as they were in training.

    Raises:
        UserError: the pairs were tokenised for another tokenizer or template.
    """
    checkpoints = models.trained
    chat = load_chat(models.base, models.section, next(iter(checkpoints.values())))
    check_chat(tokens, chat, "the trained models")
    test = tokens.rows("test")
    prompt_ids = dict(zip(test["id"], test["prompt_ids"], strict=True))
    chosen = choose_prompts(preferences.test, section.generations.n)
    prompts = chosen.filter(lambda row: row["id"] in prompt_ids)
    answers: dict[str, list[Response]] = {}
    stages: dict[str, StageGenerations] = {}
    for stage, checkpoint in checkpoints.items():
        writer = Writer(load_model(models.base, models.section, checkpoint), chat, models.section)
        found = complete(writer, [prompt_ids[row_id] for row_id in prompts["id"]], section, f"{stage}, answers")
        del writer  # frees the model's memory before the next one is loaded
        answers[stage] = [_response(chat, *answer, row) for answer, row in zip(found, prompts, strict=True)]
        if found:
            stages[stage] = _summarise(answers[stage], [ids for ids, _ in found], section)
    exchanges = [
        Exchange(
            id=row["id"],
            source=row["source"],
            prompt=row["prompt"],
            responses={stage: answers[stage][i] for stage in checkpoints},
        )
        for i, row in enumerate(prompts)
    ]
    return Generations(
        max_new_tokens=section.generations.max_new_tokens,
        temperature=section.generations.temperature,
        seed=section.seed,
        stages=stages,
        by_true_reward=_by_true_reward(exchanges, section),
        by_judge=judge_contests(_contests(exchanges), section.judge, section.confidence),
        exchanges=exchanges,
        digests={stage: checkpoint.digest for stage, checkpoint in checkpoints.items()},
    )


def choose_prompts(rows: Dataset, n: int) -> Dataset:
    """Return at most `n` rows with different prompts. The choice depends on the prompts alone, not on order or responses."""
    keys: dict[str, int] = {}
    for i, prompt in enumerate(rows["prompt"]):
        keys.setdefault(hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest(), i)
    return rows.select([keys[key] for key in sorted(keys)[:n]])


def generation_config(chat: Chat, max_new_tokens: int, temperature: float) -> GenerationConfig:
    """Return generation settings that are the same for every model.

    A model's own settings are not used: they may contain penalties and temperatures chosen for its base.
    """
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        eos_token_id=chat.stop_ids,
        pad_token_id=chat.tokenizer.pad_token_id,
    )


@dataclass(frozen=True)
class Writer:
    """A loaded model that answers prompts."""

    model: Model
    chat: Chat
    section: ModelSection
    """How the model was loaded."""


@torch.no_grad()
def complete(
    writer: Writer, prompts: Sequence[list[int]], section: EvaluationSection, label: str
) -> list[tuple[list[int], bool]]:
    """Return the model's answer to each prompt: token ids without the stop token, and whether there was a stop token.

    Prompts are sorted by length and padded on the left. At temperature 0 the batch size changes only the last digits of the
    logits. Above 0 it also changes which tokens are drawn.

    Args:
        label: text of the progress bar.
    """
    settings, model, chat = section.generations, writer.model, writer.chat
    model.generation_config = generation_config(chat, settings.max_new_tokens, settings.temperature)
    model.eval()
    found: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    where = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    longest_whole = max(map(len, prompts), default=0) + settings.max_new_tokens
    n_rows = max(1, section.tokens_per_batch // longest_whole)
    with autocast(writer.section), torch.random.fork_rng(), progress_bar(len(prompts), label, " prompts") as progress:
        torch.manual_seed(section.seed)
        for batch in (order[start : start + n_rows] for start in range(0, len(order), n_rows)):
            longest = len(prompts[batch[0]])
            input_ids = torch.full((len(batch), longest), chat.tokenizer.pad_token_id, dtype=torch.long)
            attention_mask = torch.zeros_like(input_ids)
            for row, i in enumerate(batch):
                input_ids[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
                attention_mask[row, longest - len(prompts[i]) :] = 1
            output = model.generate(input_ids=input_ids.to(where), attention_mask=attention_mask.to(where))
            for i, ids in zip(batch, output[:, longest:].tolist(), strict=True):
                found[i] = _until_stop(ids, chat.stop_ids)
            progress.update(len(batch))
    return found


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Return the share of a text's n-grams that occurred earlier in it; 0 if it has none.

    Source: Welleck et al. 2020, rep-n: 1 - distinct n-grams / n-grams.
    """
    grams = list(_ngrams(ids, n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _ngrams(ids: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))


def _until_stop(ids: list[int], stop_ids: list[int]) -> tuple[list[int], bool]:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    return (ids, False) if end is None else (ids[:end], True)


def _response(chat: Chat, ids: list[int], stopped: bool, row: Mapping[str, Any]) -> Response:
    text = str(chat.tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return Response(
        text=text,
        n_tokens=len(ids),
        stopped=stopped,
        repetition=repetition(ids),
        true_reward=demo.reward(row["prompt"][-1]["content"], text) if row["true_margin"] is not None else None,
    )


def _summarise(
    answers: Sequence[Response], tokens: Sequence[list[int]], section: EvaluationSection
) -> StageGenerations:
    bigrams = [gram for ids in tokens for gram in _ngrams(ids, 2)]
    rewards = [answer.true_reward for answer in answers if answer.true_reward is not None]

    def mean(values: Sequence[float]) -> Estimate:
        return bootstrap_mean(np.array(values), section)

    return StageGenerations(
        stop_rate=wilson(sum(answer.stopped for answer in answers), len(answers), section.confidence),
        n_tokens=mean([answer.n_tokens for answer in answers]),
        repetition=mean([answer.repetition for answer in answers]),
        distinct_2=len(set(bigrams)) / len(bigrams) if bigrams else 0.0,
        true_reward=mean(rewards) if rewards else None,
    )


def _by_true_reward(exchanges: Sequence[Exchange], section: EvaluationSection) -> WinRate | None:
    scores, conversations = [], []
    for exchange in exchanges:
        rewards = [response.true_reward for response in exchange.responses.values()]
        if len(rewards) == 2 and None not in rewards:
            sft, dpo = (
                round(float(reward or 0), 6) for reward in rewards
            )  # a sum in another order differs in its last digits
            scores.append((float(np.sign(dpo - sft)) + 1) / 2)
            conversations.append(conversation_key(exchange.prompt))
    return win_rate(scores, section.confidence, Clusters.of(conversations)) if scores else None


def _contests(exchanges: Sequence[Exchange]) -> list[Contest]:
    return [
        Contest(exchange.id, exchange.prompt, exchange.responses["sft"].text, exchange.responses["dpo"].text)
        for exchange in exchanges
        if {"sft", "dpo"} <= exchange.responses.keys()
    ]


def key_figures(generations: Generations) -> dict[str, float]:
    """Return the figures without intervals, as logged to MLflow: `stop/dpo`, `win/true_reward`."""
    flat = {
        f"{metric.chart}/{stage}": estimate.value
        for stage, figures in generations.stages.items()
        for name, metric in ANSWERS.items()
        if (estimate := getattr(figures, name)) is not None
    }
    judged = generations.by_judge.win_rate if generations.by_judge else None
    by = {"true_reward": generations.by_true_reward, "judge": judged}
    return flat | {f"win/{name}": rate.share.value for name, rate in by.items() if rate}
