"""Answers of SFT, DPO and the champion to the same test prompts, side by side, and which of them answers better."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from transformers import GenerationConfig

from posttrain.chat.template import Chat, Messages
from posttrain.chat.tokenise import tokenise_pairs
from posttrain.chat.tokens import PairTokens, check_chat
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.demo import pairs as demo
from posttrain.data.stored import Preferences
from posttrain.evaluation.answers.answer_figures import (
    AnswerComparison,
    Response,
    StageGenerations,
    compare_answers,
    figures_by_chart,
    repetition,
    summarise_answers,
)
from posttrain.evaluation.answers.generation_batches import merged, rows_that_fit
from posttrain.evaluation.answers.judge import AnswerScores, Contest, judge_by_scores, judge_contests
from posttrain.evaluation.clusters import conversation_key
from posttrain.evaluation.evaluated_models import EvaluatedModels, section_of_champion
from posttrain.evaluation.intervals import Result
from posttrain.evaluation.labels import ANSWERS
from posttrain.forward.balance import balance
from posttrain.forward.probe import left_padding_is_exact
from posttrain.forward.ranks import LoadedBy, ModelCopy, on_ranks
from posttrain.models.loading import Model, load_chat
from posttrain.models.precision import autocast
from posttrain.progress import progress_bar

Answer: TypeAlias = tuple[list[int], bool]
"""Token ids without the stop token, and whether there was a stop token."""


class Exchange(Result):
    """A prompt and the answer of each model."""

    id: str
    """Id of the test pair that the prompt is from."""
    source: str
    prompt: Messages
    responses: dict[str, Response]
    """By stage: `sft`, `dpo`, `champion`."""


class Generations(Result):
    """All answers, and the figures computed from them."""

    max_new_tokens: int
    temperature: float
    seed: int
    stages: dict[str, StageGenerations]
    """By stage: `sft`, `dpo` if DPO was trained, and `champion` if there is one."""
    comparisons: dict[str, AnswerComparison]
    """The newest model against the earlier ones: `dpo_vs_sft`, `dpo_vs_champion` (`sft_vs_champion` where SFT is the newest)."""
    exchanges: list[Exchange]
    digests: dict[str, str]
    """Of the models."""

    @property
    def answers_digest(self) -> str:
        """sha256 of all answers, figures and verdicts of judges."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `generations.json` into a folder."""
        (folder / "generations.json").write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Generations:
        """Return what `save` wrote."""
        return cls.model_validate_json((folder / "generations.json").read_text(encoding="utf-8"))


def generate(
    preferences: Preferences,
    tokens: PairTokens,
    models: EvaluatedModels,
    section: EvaluationSection,
    scores: AnswerScores | None = None,
) -> Generations:
    """Return the answers of SFT, DPO and the champion to the same test prompts.

    The champion answers as it is served: with its own tokenizer and template. Prompts that it cannot read are left out.

    Args:
        tokens: of the preferences. Prompts are cut as they were in training.
        scores: the verifier that `section.judge.verifier` names.

    Raises:
        UserError: the pairs were tokenised for another tokenizer or template, or the champion's base has changed.
    """
    chosen = choose_prompts(preferences.test, section.generations.n)
    writers = _writers(models, tokens, chosen, section.processes)
    readable = set.intersection(*(set(writer.prompt_ids) for writer in writers.values()))
    prompts = chosen.filter(lambda row: row["id"] in readable)
    answers: dict[str, list[Response]] = {}
    stages: dict[str, StageGenerations] = {}
    for stage, writer in writers.items():
        same = [earlier for earlier in answers if models.digests[earlier] == models.digests[stage]]
        if same:
            answers[stage] = answers[same[0]]
            stages |= {stage: stages[same[0]]} if same[0] in stages else {}
            continue
        found = writer.complete(prompts["id"], section, f"{stage}, answers")
        answers[stage] = [_response(writer.chat, *answer, row) for answer, row in zip(found, prompts, strict=True)]
        if found:
            stages[stage] = summarise_answers(answers[stage], [ids for ids, _ in found], section)
    exchanges = _exchanges(prompts, answers)
    return Generations(
        max_new_tokens=section.generations.max_new_tokens,
        temperature=section.generations.temperature,
        seed=section.seed,
        stages=stages,
        comparisons=_compared(exchanges, section, scores),
        exchanges=exchanges,
        digests={stage: models.digests[stage] for stage in writers},
    )


@dataclass(frozen=True)
class _Writing:
    """A model that is loaded when it answers, in as many processes as are set."""

    source: LoadedBy
    chat: Chat
    prompt_ids: dict[str, list[int]]
    """The prompts that it can read, by the id of the pair."""

    def complete(self, ids: Sequence[str], section: EvaluationSection, label: str) -> list[Answer]:
        """Return the answers to some prompts, as `complete` does."""
        prompts = [self.prompt_ids[row_id] for row_id in ids]
        with on_ranks(self.source) as ranks:
            found = ranks.run(_answers_merged, self.chat, prompts, section, label)
        answers = {i: answer for part in found for i, answer in part.items()}
        return [answers[i] for i in range(len(prompts))]


def _exchanges(prompts: Dataset, answers: Mapping[str, Sequence[Response]]) -> list[Exchange]:
    return [
        Exchange(
            id=row["id"],
            source=row["source"],
            prompt=row["prompt"],
            responses={stage: found[i] for stage, found in answers.items()},
        )
        for i, row in enumerate(prompts)
    ]


def _writers(
    models: EvaluatedModels, tokens: PairTokens, chosen: Dataset, processes: int | Literal["auto"]
) -> dict[str, _Writing]:
    """Return by stage each model and its prompts."""
    checkpoints = models.trained
    chat = load_chat(models.base, models.section, next(iter(checkpoints.values())))
    check_chat(tokens, chat, "the trained models")
    test = tokens.rows("test")
    prompt_ids = dict(zip(test["id"], test["prompt_ids"], strict=True))

    writers = {
        stage: _Writing(LoadedBy(models.base, models.section, checkpoint, processes), chat, prompt_ids)
        for stage, checkpoint in checkpoints.items()
    }
    if champion := models.champion:
        base, section = champion.manifest.base, section_of_champion(champion, models.base, models.section)
        own = load_chat(base, section, champion)
        if own.digest != chat.digest:
            lengths = tokens.lengths
            rows = tokenise_pairs(own, chosen, lengths.max_length, lengths.max_prompt_length).rows
            prompt_ids = dict(zip(rows["id"], rows["prompt_ids"], strict=True))
        writers["champion"] = _Writing(LoadedBy(base, section, champion, processes), own, prompt_ids)
    return writers


def choose_prompts(rows: Dataset, n: int) -> Dataset:
    """Return at most `n` rows with prompts of different conversations.

    The choice depends on the prompts alone, not on order or responses.
    """
    keys: dict[str, int] = {}
    for i, prompt in enumerate(rows["prompt"]):
        keys.setdefault(hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest(), i)
    chosen: dict[str, int] = {}
    for key in sorted(keys):
        chosen.setdefault(conversation_key(rows[keys[key]]["prompt"]), keys[key])
    return rows.select(list(chosen.values())[:n])


def generation_config(chat: Chat, max_new_tokens: int, temperature: float, top_p: float = 1.0) -> GenerationConfig:
    """Return generation settings that are the same for every model.

    A model's own settings are not used: they may contain penalties and temperatures chosen for its base.
    """
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_p=top_p if temperature > 0 else None,
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


def complete(writer: Writer, prompts: Sequence[list[int]], section: EvaluationSection, label: str) -> list[Answer]:
    """Return the model's answer to each prompt: token ids without the stop token, and whether there was a stop token.

    Prompts are sorted by length and padded on the left. At temperature 0 the batch size changes only the last digits of the
    logits. Above 0 it also changes which tokens are drawn.

    Args:
        label: text of the progress bar.
    """
    found = _answers(ModelCopy(writer.model, writer.section), writer.chat, prompts, section, label)
    return [found[i] for i in range(len(prompts))]


def _answers_merged(own: ModelCopy, *inputs: Any) -> dict[int, Answer]:
    """Return what `_answers` does. The model is not used afterwards."""
    return _answers(replace(own, model=merged(own.model)), *inputs)


@torch.no_grad()
def _answers(
    own: ModelCopy, chat: Chat, prompts: Sequence[list[int]], section: EvaluationSection, label: str
) -> dict[int, Answer]:
    """Return the answers to this rank's share of the prompts, by their positions.

    The batches and what is drawn in each of them do not depend on the number of ranks.
    """
    settings, model = section.generations, own.model
    model.generation_config = generation_config(chat, settings.max_new_tokens, settings.temperature, settings.top_p)
    model.eval()
    found: dict[int, Answer] = {}
    where = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    longest_whole = max(map(len, prompts), default=0) + settings.max_new_tokens
    n_rows = rows_that_fit(model, longest_whole, section.tokens_per_batch)
    is_padded = n_rows > 1 and len(set(map(len, prompts))) > 1
    if is_padded and not left_padding_is_exact(model, chat.tokenizer.pad_token_id, own.section):
        print(f"{label}: one prompt at a time, because this model reads the padding of a batch")
        n_rows = 1
    batches = [order[start : start + n_rows] for start in range(0, len(order), n_rows)]
    costs = [len(batch) * (len(prompts[batch[0]]) + settings.max_new_tokens) for batch in batches]
    mine = sorted(balance(costs, own.n_ranks)[own.rank])
    n_mine = sum(len(batches[i]) for i in mine)
    with autocast(own.section), torch.random.fork_rng(), progress_bar(n_mine, label, " prompts") as progress:
        for number in mine:
            batch = batches[number]
            torch.manual_seed(int(np.random.SeedSequence([section.seed, number]).generate_state(1)[0]))
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


def _compared(
    exchanges: Sequence[Exchange], section: EvaluationSection, scores: AnswerScores | None
) -> dict[str, AnswerComparison]:
    """Return the comparisons of the newest model with the earlier ones, `dpo_vs_sft` and `dpo_vs_champion`."""
    if not exchanges:
        return {}
    answers = {stage: [e.responses[stage] for e in exchanges] for stage in exchanges[0].responses}
    newest = next(stage for stage in ("dpo", "sft") if stage in answers)
    found = {}
    for older in (stage for stage in answers if stage != newest):
        contests = [Contest(e.id, e.prompt, e.responses[older].text, e.responses[newest].text) for e in exchanges]
        judgement = (
            judge_by_scores(contests, scores, str(section.judge.verifier), section.confidence)
            if scores
            else judge_contests(contests, section.judge, section.confidence)
        )
        found[f"{newest}_vs_{older}"] = compare_answers(answers[newest], answers[older], judgement, section)
    return found


def key_figures(generations: Generations) -> dict[str, float]:
    """Return the figures without intervals, as logged to MLflow: `stop/dpo`, `win/true_reward`."""
    flat = {
        f"{metric.chart}/{stage}": estimate.value
        for stage, figures in generations.stages.items()
        for name, metric in ANSWERS.items()
        if (estimate := getattr(figures, name)) is not None
    }
    return flat | figures_by_chart(generations.comparisons)
