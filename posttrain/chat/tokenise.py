"""Token ids of prompts and responses, and the cuts that make them fit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
from datasets import Dataset

from posttrain.chat.template import Chat, Messages, Tools, _difference, _render
from posttrain.data.rows import as_messages
from posttrain.errors import UserError

IDS = pa.list_(pa.int32())
PAIR_TOKENS = pa.schema([("id", pa.string()), ("prompt_ids", IDS), ("chosen_ids", IDS), ("rejected_ids", IDS)])
"""A preference pair as token ids. Each response includes its stop token unless its end was cut off."""
COMPLETION_TOKENS = pa.schema([("input_ids", IDS), ("labels", IDS)])
"""A prompt and its completion as one sequence. `labels` is -100 at every prompt position."""
PAIR_CUTS = ("prompt_cut", "chosen_cut", "rejected_cut", "no_room", "identical_after_cut")
COMPLETION_CUTS = ("prompt_cut", "completion_cut")


class EncodedPair(NamedTuple):
    """Token ids of one preference pair."""

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class EncodedCompletion(NamedTuple):
    """Token ids of a prompt and its completion."""

    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass(frozen=True)
class Tokenised:
    """Rows of token ids, and how many rows were cut or left out (`counts`)."""

    rows: Dataset
    counts: dict[str, int]


def tokenise_pairs(chat: Chat, rows: Dataset, max_length: int, max_prompt_length: int) -> Tokenised:
    """Return preference pairs as `PAIR_TOKENS`, cut by `cut_pairs`."""
    kept, counts = cut_pairs(encode_pairs(chat, rows), max_length, max_prompt_length)
    return Tokenised(Dataset(pair_table(kept)), counts)


def tokenise_completions(chat: Chat, rows: Dataset, max_length: int) -> Tokenised:
    """Return prompts and completions as `COMPLETION_TOKENS`, cut by `cut_completions`."""
    table, counts = cut_completions(encode_completions(chat, rows), max_length)
    return Tokenised(Dataset(table), counts)


def encode_pairs(chat: Chat, rows: Dataset) -> list[EncodedPair]:
    """Return the token ids of each pair before any cut, in the order of the rows."""
    conversations = _conversations(rows)
    prompts = [_render(chat, *conversation, add_generation_prompt=True) for conversation in conversations]
    prompt_ids = _encode(chat, prompts)
    chosen_ids = _completions(chat, conversations, prompts, prompt_ids, list(map(as_messages, rows["chosen"])))
    rejected_ids = _completions(chat, conversations, prompts, prompt_ids, list(map(as_messages, rows["rejected"])))
    return list(map(EncodedPair, rows["id"], prompt_ids, chosen_ids, rejected_ids))


def encode_completions(chat: Chat, rows: Dataset) -> list[EncodedCompletion]:
    """Return the token ids of each prompt and completion before any cut, in the order of the rows."""
    conversations = _conversations(rows)
    prompts = [_render(chat, *conversation, add_generation_prompt=True) for conversation in conversations]
    prompt_ids = _encode(chat, prompts)
    return list(
        map(
            EncodedCompletion,
            prompt_ids,
            _completions(chat, conversations, prompts, prompt_ids, list(map(as_messages, rows["completion"]))),
        )
    )


def cut_pairs(
    pairs: Sequence[EncodedPair], max_length: int, max_prompt_length: int
) -> tuple[list[EncodedPair], dict[str, int]]:
    """Return the pairs that can be used, cut to these lengths, and how many pairs were cut or left out (`PAIR_CUTS`).

    A prompt longer than `max_prompt_length` tokens loses its beginning. A response that does not fit into `max_length`
    together with its prompt loses its end. TRL cut the same way before 1.0. A pair is left out if there is no room for a
    response, or if its two responses are the same after the cut.
    """
    counts = Counter(dict.fromkeys(PAIR_CUTS, 0))
    kept = []
    for row_id, prompt, chosen, rejected in pairs:
        cut_prompt = prompt[-max_prompt_length:]
        room = max_length - len(cut_prompt)
        if room == 0:
            counts["no_room"] += 1
            continue
        if chosen[:room] == rejected[:room]:
            counts["identical_after_cut"] += 1
            continue
        counts["prompt_cut"] += len(prompt) > max_prompt_length
        counts["chosen_cut"] += len(chosen) > room
        counts["rejected_cut"] += len(rejected) > room
        kept.append(EncodedPair(row_id, cut_prompt, chosen[:room], rejected[:room]))
    return kept, dict(counts)


def cut_completions(completions: Iterable[EncodedCompletion], max_length: int) -> tuple[pa.Table, dict[str, int]]:
    """Return sequences of at most `max_length` tokens as `COMPLETION_TOKENS`, and how many were cut (`COMPLETION_CUTS`).

    Tokens are removed from the beginning of the prompt, until it has half of `max_length`, and then from the end of the
    completion. No row is left out.
    """
    counts = Counter(dict.fromkeys(COMPLETION_CUTS, 0))
    input_ids, labels = [], []
    for prompt, completion in completions:
        cut_prompt = prompt[-max(max_length - len(completion), max_length // 2) :]
        cut_completion = completion[: max_length - len(cut_prompt)]
        counts["prompt_cut"] += len(cut_prompt) < len(prompt)
        counts["completion_cut"] += len(cut_completion) < len(completion)
        input_ids.append(cut_prompt + cut_completion)
        labels.append([-100] * len(cut_prompt) + cut_completion)
    return pa.table({"input_ids": input_ids, "labels": labels}, COMPLETION_TOKENS), dict(counts)


def pair_table(pairs: Sequence[EncodedPair]) -> pa.Table:
    """Return pairs as a table of `PAIR_TOKENS`."""
    columns = zip(*pairs, strict=True) if pairs else [[] for _ in PAIR_TOKENS.names]
    return pa.table(dict(zip(PAIR_TOKENS.names, map(list, columns), strict=True)), PAIR_TOKENS)


def _conversations(rows: Dataset) -> list[tuple[Messages, Tools]]:
    """Return the prompt of each row, and the tools that the template receives."""
    tools = rows["tools"] if "tools" in rows.column_names else [None] * len(rows)
    return [
        (as_messages(prompt), json.loads(text) if text else None)
        for prompt, text in zip(rows["prompt"], tools, strict=True)
    ]


def _encode(chat: Chat, texts: list[str]) -> list[list[int]]:
    return list(chat.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]) if texts else []


def _completions(
    chat: Chat,
    conversations: list[tuple[Messages, Tools]],
    prompt_texts: list[str],
    prompt_ids: list[list[int]],
    responses: list[Messages],
) -> list[list[int]]:
    """Return the tokens that follow each prompt, up to and including the stop token.

    Prompt and response are tokenised as one text, as they are during generation. If a token would span the boundary, the
    response is tokenised alone, so that the prompt has the same tokens as in a served model.
    """
    tails = []
    for (prompt, tools), prompt_text, response in zip(conversations, prompt_texts, responses, strict=True):
        text = _render(chat, [*prompt, *response], tools)
        if not text.startswith(prompt_text):
            raise UserError(
                f"model.chat_template: {chat.template} renders the prompt differently once a response follows "
                f"({_difference(prompt_text, text)}). The model would be trained on prompts that it never sees when it is "
                "used: choose another template"
            )
        stop = str(chat.tokenizer.convert_ids_to_tokens(chat.stop_id))
        tail = text[len(prompt_text) :]
        end = tail.rfind(stop)
        tails.append(tail[: end + len(stop)] if end >= 0 else tail + stop)
    whole = _encode(chat, [prompt + tail for prompt, tail in zip(prompt_texts, tails, strict=True)])
    merged = [i for i, (ids, prompt) in enumerate(zip(whole, prompt_ids, strict=True)) if ids[: len(prompt)] != prompt]
    alone = dict(zip(merged, _encode(chat, [tails[i] for i in merged]), strict=True))
    return [
        alone[i] if i in alone else ids[len(prompt) :]
        for i, (ids, prompt) in enumerate(zip(whole, prompt_ids, strict=True))
    ]
