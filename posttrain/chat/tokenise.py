"""Token ids of prompts and responses, cut to the lengths that the settings allow."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

from datasets import Dataset

from posttrain.chat.template import Chat, Messages, Tools, _difference, _render
from posttrain.errors import UserError


@dataclass(frozen=True)
class Tokenised:
    """Rows of token ids, and how many rows lost what on the way (`counts`; `rows` holds what is left)."""

    rows: Dataset
    counts: dict[str, int]


def tokenise_pairs(chat: Chat, rows: Dataset, max_length: int, max_prompt_length: int) -> Tokenised:
    """Preference pairs as `id, prompt_ids, chosen_ids, rejected_ids`; a response includes its stop token.

    A prompt above `max_prompt_length` tokens loses its beginning, a response that does not fit into `max_length` beside
    its prompt its end, both as TRL had it before 1.0. A pair with no room for a response, or whose two responses are
    the same after the cut, is left out. All of it is counted.
    """
    conversations = _conversations(rows)
    prompts = [_render(chat, *conversation, add_generation_prompt=True) for conversation in conversations]
    prompt_ids = _encode(chat, prompts)
    chosen_ids = _completions(chat, conversations, prompts, prompt_ids, rows["chosen"])
    rejected_ids = _completions(chat, conversations, prompts, prompt_ids, rows["rejected"])

    counts = Counter(dict.fromkeys(("prompt_cut", "chosen_cut", "rejected_cut", "no_room", "identical_after_cut"), 0))
    kept = []
    for row_id, prompt, chosen, rejected in zip(rows["id"], prompt_ids, chosen_ids, rejected_ids, strict=True):
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
        kept.append((row_id, cut_prompt, chosen[:room], rejected[:room]))
    columns = list(zip(*kept, strict=True)) if kept else [(), (), (), ()]
    names = ("id", "prompt_ids", "chosen_ids", "rejected_ids")
    return Tokenised(Dataset.from_dict(dict(zip(names, map(list, columns), strict=True))), dict(counts))


def tokenise_completions(chat: Chat, rows: Dataset, max_length: int) -> Tokenised:
    """Prompt and completion as `input_ids, labels`, where every prompt position has the label -100.

    What does not fit into `max_length` goes from the beginning of the prompt, down to half of `max_length`, and then
    from the end of the completion; both are counted, no row is lost.
    """
    conversations = _conversations(rows)
    prompts = [_render(chat, *conversation, add_generation_prompt=True) for conversation in conversations]
    prompt_ids = _encode(chat, prompts)
    completion_ids = _completions(chat, conversations, prompts, prompt_ids, rows["completion"])
    counts = Counter(dict.fromkeys(("prompt_cut", "completion_cut"), 0))
    input_ids, labels = [], []
    for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
        cut_prompt = prompt[-max(max_length - len(completion), max_length // 2) :]
        cut_completion = completion[: max_length - len(cut_prompt)]
        counts["prompt_cut"] += len(cut_prompt) < len(prompt)
        counts["completion_cut"] += len(cut_completion) < len(completion)
        input_ids.append(cut_prompt + cut_completion)
        labels.append([-100] * len(cut_prompt) + cut_completion)
    return Tokenised(Dataset.from_dict({"input_ids": input_ids, "labels": labels}), dict(counts))


def _conversations(rows: Dataset) -> list[tuple[Messages, Tools]]:
    """The prompt of each row, and the tools that its template is given."""
    tools = rows["tools"] if "tools" in rows.column_names else [None] * len(rows)
    return [(prompt, json.loads(text) if text else None) for prompt, text in zip(rows["prompt"], tools, strict=True)]


def _encode(chat: Chat, texts: list[str]) -> list[list[int]]:
    return list(chat.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]) if texts else []


def _completions(
    chat: Chat,
    conversations: list[tuple[Messages, Tools]],
    prompt_texts: list[str],
    prompt_ids: list[list[int]],
    responses: list[Messages],
) -> list[list[int]]:
    """The tokens that follow each prompt, up to and including the stop token.

    The whole text is tokenised at once, as it is while generating; where a token would reach over the boundary, the
    completion is tokenised alone, so that the prompt stays the one a served model sees.
    """
    tails = []
    for (prompt, tools), prompt_text, response in zip(conversations, prompt_texts, responses, strict=True):
        text = _render(chat, [*prompt, *response], tools)
        if not text.startswith(prompt_text):
            raise UserError(
                f"model.chat_template: {chat.template} renders the prompt differently once a response follows "
                f"({_difference(prompt_text, text)}), so a model would be trained on prompts that it never sees: "
                "choose another template"
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
