"""Token ids of prompts and responses, and the cuts that make them fit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset

from posttrain.chat.control_tokens import encode_marked
from posttrain.chat.findings import Findings
from posttrain.chat.rendered_rows import Conversation, RenderedRow, earlier_answers, render_row
from posttrain.chat.renderer import TemplateRefusesError
from posttrain.chat.rendering import render_completion, render_prompt
from posttrain.chat.template import Chat
from posttrain.data.spool import lean_rows

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
    earlier: Sequence[tuple[int, int]] = ()
    """Starts and ends of the earlier answers in the prompt that are trained on too."""


class EncodedRow(NamedTuple):
    """Token ids of a prompt and of every answer to it, and their text."""

    id: str
    prompt_ids: list[int]
    answers_ids: list[list[int]]
    rendered: RenderedRow

    @property
    def pair(self) -> EncodedPair:
        """Return the row as a pair."""
        return EncodedPair(self.id, self.prompt_ids, *self.answers_ids)


@dataclass(frozen=True)
class Tokenised:
    """Rows of token ids, and how many rows were cut or left out (`counts`)."""

    rows: Dataset
    counts: dict[str, int]


def tokenise_pairs(
    chat: Chat, rows: Dataset, max_length: int, max_prompt_length: int, findings: Findings | None = None
) -> Tokenised:
    """Return preference pairs as `PAIR_TOKENS`, cut by `cut_pairs`.

    Args:
        findings: counts the rows that the checks of rendered rows drop; None: such a row is an error.
    """
    found = findings or Findings()
    kept, counts = cut_pairs(encode_pairs(chat, rows, found), max_length, max_prompt_length)
    if findings is None:
        found.check_policies(chat.template, 0)
    return Tokenised(Dataset(pair_table(kept)), counts | found.counts())


def tokenise_completions(
    chat: Chat, rows: Dataset, max_length: int, findings: Findings | None = None, *, loss_on_all: bool = False
) -> Tokenised:
    """Return prompts and completions as `COMPLETION_TOKENS`, cut by `cut_completions`.

    Args:
        findings: as in `tokenise_pairs`.
        loss_on_all: train on earlier answers in the prompts as well.
    """
    found = findings or Findings()
    encoded = encode_rows(chat, rows, ("completion",), found)
    if findings is None:
        found.check_policies(chat.template, 0)
    table, counts = cut_completions((one for row in encoded for one in completions(chat, row, loss_on_all)), max_length)
    return Tokenised(Dataset(table), counts | found.counts())


def encode_pairs(chat: Chat, rows: Dataset, findings: Findings) -> list[EncodedPair]:
    """Return the token ids of each pair before any cut, in the order of the rows."""
    return [row.pair for row in encode_rows(chat, rows, ("chosen", "rejected"), findings)]


def encode_rows(chat: Chat, rows: Dataset, columns: Sequence[str], findings: Findings) -> list[EncodedRow]:
    """Return the token ids of each row's prompt and answers before any cut, in the order of the rows.

    Prompt and answer are tokenised as one text, as they are during generation. If a token would span the boundary, the answer
    is tokenised alone, so that the prompt has the same tokens as in a served model.

    Args:
        columns: names of the columns with answers.
        findings: counts what the checks find; rows that they drop are missing.
    """
    ids, conversations = _conversations(rows, columns)
    rendered = [
        (row_id, row)
        for row_id, one in zip(ids, conversations, strict=True)
        if (row := render_row(chat, one, findings))
    ]
    encode = _Encoder(chat)
    prompts = encode([row.prompt for _, row in rendered], [row.marked for _, row in rendered])
    answers = [
        encode.after(
            [row.prompt for _, row in rendered],
            [row.completions[i] for _, row in rendered],
            prompts,
            [row.marked for _, row in rendered],
        )
        for i in range(len(columns))
    ]
    return [
        EncodedRow(row_id, prompts[i], [column[i] for column in answers], row)
        for i, (row_id, row) in enumerate(rendered)
    ]


def completions(chat: Chat, row: EncodedRow, loss_on_all: bool) -> Iterator[EncodedCompletion]:
    """Yield what SFT learns from a row: its first answer and, if `loss_on_all`, each earlier answer in its prompt.

    An earlier answer that the prompt shows as the model would have written it is trained on in its place. Some templates show
    it in another way, such as without its thoughts; then it becomes a row of its own, with the prompt that it answers.
    """
    earlier = []
    for prompt, turn in earlier_answers(row.rendered.conversation) if loss_on_all else ():
        one = _earlier_answer(chat, row, prompt, turn)
        if one is None:
            continue
        whole = one.prompt_ids + one.completion_ids
        if row.prompt_ids[: len(whole)] == whole:
            earlier.append((len(one.prompt_ids), len(whole)))
        else:
            yield one
    yield EncodedCompletion(row.prompt_ids, row.answers_ids[0], earlier)


def _earlier_answer(chat: Chat, row: EncodedRow, prompt: list[Any], turn: dict[str, Any]) -> EncodedCompletion | None:
    """Return an earlier answer as a row of its own; None if its author excludes it, or the template cannot render it."""
    if turn.get("weight") == 0:
        return None
    tools, marked = row.rendered.conversation.tools, row.rendered.marked
    try:
        prompt_text = render_prompt(chat, prompt, tools)
        text = render_completion(chat, prompt, tools, prompt_text, turn).text
    except TemplateRefusesError:
        return None
    encode = _Encoder(chat)
    prompt_ids = encode([prompt_text], [marked])
    return EncodedCompletion(prompt_ids[0], encode.after([prompt_text], [text], prompt_ids, [marked])[0])


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
    for prompt, completion, earlier in completions:
        cut_prompt = prompt[-max(max_length - len(completion), max_length // 2) :]
        cut_completion = completion[: max_length - len(cut_prompt)]
        counts["prompt_cut"] += len(cut_prompt) < len(prompt)
        counts["completion_cut"] += len(cut_completion) < len(completion)
        input_ids.append(cut_prompt + cut_completion)
        label = [-100] * len(cut_prompt) + cut_completion
        for start, end in earlier:
            n_cut = len(prompt) - len(cut_prompt)
            start, end = max(start - n_cut, 0), max(end - n_cut, 0)
            label[start:end] = cut_prompt[start:end]
        labels.append(label)
    return pa.table({"input_ids": input_ids, "labels": labels}, COMPLETION_TOKENS), dict(counts)


def pair_table(pairs: Sequence[EncodedPair]) -> pa.Table:
    """Return pairs as a table of `PAIR_TOKENS`."""
    columns = zip(*pairs, strict=True) if pairs else [[] for _ in PAIR_TOKENS.names]
    return pa.table(dict(zip(PAIR_TOKENS.names, map(list, columns), strict=True)), PAIR_TOKENS)


def _conversations(rows: Dataset, columns: Sequence[str]) -> tuple[list[str], list[Conversation]]:
    """Return the id of each row, and its messages as the checks take them."""
    used = [name for name in ("id", "source", "prompt", *columns, "tools") if name in rows.column_names]
    found = lean_rows(rows.select_columns(used).with_format("arrow")[:])
    conversations = [
        Conversation(
            f"{row['source']}, row id {row['id']}" if row.get("source") else f"row id {row.get('id')}",
            row["prompt"],
            json.loads(row["tools"]) if row.get("tools") else None,
            [row[name][-1] for name in columns],
        )
        for row in found
    ]
    return [str(row.get("id")) for row in found], conversations


class _Encoder:
    """The tokenizer, for rendered texts."""

    def __init__(self, chat: Chat) -> None:
        self._tokenizer = chat.tokenizer

    def __call__(self, texts: Sequence[str], marked: Sequence[bool]) -> list[list[int]]:
        """Return the tokens of texts; `marked` says in which of them control tokens are marked as text."""
        plain = [text for text, is_marked in zip(texts, marked, strict=True) if not is_marked]
        ids = iter(self._tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"] if plain else [])
        return [
            encode_marked(self._tokenizer, text) if is_marked else list(next(ids))
            for text, is_marked in zip(texts, marked, strict=True)
        ]

    def after(
        self, prompts: Sequence[str], texts: Sequence[str], prompt_ids: Sequence[list[int]], marked: Sequence[bool]
    ) -> list[list[int]]:
        """Return the tokens of each text after its prompt."""
        whole = self([prompt + text for prompt, text in zip(prompts, texts, strict=True)], marked)
        merged = [
            i for i, (ids, prompt) in enumerate(zip(whole, prompt_ids, strict=True)) if ids[: len(prompt)] != prompt
        ]
        alone = dict(zip(merged, self([texts[i] for i in merged], [marked[i] for i in merged]), strict=True))
        return [
            alone[i] if i in alone else ids[len(prompt) :]
            for i, (ids, prompt) in enumerate(zip(whole, prompt_ids, strict=True))
        ]
