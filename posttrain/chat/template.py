"""From messages to tokens: the one chat template and completion mask that every stage uses.

SFT, reference scoring, DPO and evaluation all read their tokens from here, so a prompt is the same sequence in each of
them, and the same one that a served model sees.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from posttrain.errors import UserError

Messages = list[dict[str, str]]
Tools = list[dict[str, Any]] | None

PROBE = "posttrain-probe"
"""A response that no template contains of itself."""

# Line ends stand in expressions, because the template engine drops the one that follows a block.
TEMPLATES = {
    "plain": (
        "{{ bos_token }}{% for m in messages %}{{ m['role'].capitalize() }}: {{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "alpaca": (
        "{{ bos_token }}Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.{{ '\n\n' }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ '### Response:\n' + m['content'] + eos_token }}{% else %}{{ '### Instruction:\n' + m['content'] }}{% endif %}"
        "{{ '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
}


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, and how a response ends under it."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    """Where the template comes from: `tokenizer`, the name of a built-in one, or a file's name."""
    stop_id: int
    """The token that ends every response: the template's end of turn, else the tokenizer's end of sequence."""

    @property
    def stop_ids(self) -> list[int]:
        """All tokens that end a generation, for `generation_config.json`."""
        eos = self.tokenizer.eos_token_id
        return sorted({self.stop_id, eos} if eos is not None else {self.stop_id})


@dataclass(frozen=True)
class Tokenised:
    """Rows of token ids, and how many rows lost what on the way (`counts`; `rows` holds what is left)."""

    rows: Dataset
    counts: dict[str, int]


def prepare_chat(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> Chat:
    """The tokenizer with the template that was asked for.

    Args:
        chat_template: a name in `TEMPLATES`, a `.jinja` file, or None for the tokenizer's own (`plain` if it has none).

    Raises:
        UserError: no such template, one that fails, or no token that could end a response.
    """
    template = chat_template or ("tokenizer" if tokenizer.chat_template else "plain")
    if template in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[template]
    elif chat_template:
        path = Path(chat_template)
        if path.suffix != ".jinja" or not path.is_file():
            raise UserError(
                f"model.chat_template: {chat_template!r} is neither one of {', '.join(sorted(TEMPLATES))} nor a .jinja "
                "file: name one of these, or leave it out for the tokenizer's own"
            )
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"model.chat_template: {chat_template} is not UTF-8 text: {error}: save it as UTF-8"
            ) from error
        template = path.name
    if tokenizer.eos_token is None:
        raise UserError(
            "the model's tokenizer has no eos_token, so no response could end: set one in its tokenizer_config"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return Chat(tokenizer, template, _stop_id(tokenizer))


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


def _render(chat: Chat, messages: Messages, tools: Tools, **options: Any) -> str:
    try:
        return str(chat.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"model.chat_template: {chat.template} refuses a conversation of {roles} ({error}): choose another template"
        ) from error


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


def _stop_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The first special token that the template puts after a response, else the tokenizer's end of sequence."""
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": PROBE}]
    try:
        text = str(tokenizer.apply_chat_template(probe, tokenize=False))
    except TemplateError as error:
        raise UserError(
            f"model.chat_template: fails on a plain question and answer: {error}: choose another"
        ) from error
    _, found, end = text.rpartition(PROBE)
    if not found:
        raise UserError("model.chat_template: leaves out what the assistant says: choose another template")
    special = set(tokenizer.all_special_ids)
    after = tokenizer(end, add_special_tokens=False)["input_ids"]
    return int(next((token for token in after if token in special), tokenizer.eos_token_id))


def _difference(expected: str, found: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found))
    return f"{expected[at : at + 30]!r} becomes {found[at : at + 30]!r}"
