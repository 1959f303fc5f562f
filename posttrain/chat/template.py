"""The tokenizer with its chat template, which every stage uses.

A prompt has the same tokens in SFT, reference scoring, DPO, evaluation and generation, and in a served model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from posttrain.errors import UserError

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None

PROBE = "posttrain-probe"
"""A response that no template contains."""

# Line ends are written as expressions, because Jinja drops the one that follows a block.
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
    """A tokenizer with its chat template, and the token that ends a response."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    """Source of the template: `tokenizer`, the name of a built-in template, or the name of a file."""
    stop_id: int
    """Token that ends every response: the template's end of turn, or else the tokenizer's end of sequence."""

    @property
    def stop_ids(self) -> list[int]:
        """Return the ids of all tokens that end a generation, for `generation_config.json`."""
        eos = self.tokenizer.eos_token_id
        return sorted({self.stop_id, eos} if eos is not None else {self.stop_id})

    @cached_property
    def digest(self) -> str:
        """sha256 of what decides the tokens of a conversation: vocabulary, chat template and stop token."""
        # Reading a saved template turns its line ends into \n, and Jinja renders all of them as \n.
        template = (
            json.dumps(self.tokenizer.chat_template, sort_keys=True).replace(r"\r\n", r"\n").replace(r"\r", r"\n")
        )
        about = (sorted(self.tokenizer.get_vocab().items()), template, self.stop_id)
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def prepare_chat(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> Chat:
    """Return the tokenizer with a chat template.

    Args:
        chat_template: a name in `TEMPLATES`, a `.jinja` file, or None for the tokenizer's own (`plain` if it has none).

    Raises:
        UserError: the template does not exist or fails, or the tokenizer has no token that could end a response.
    """
    template = chat_template or ("tokenizer" if tokenizer.chat_template else "plain")
    if template in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[template]
    elif chat_template:
        path = Path(chat_template)
        if path.suffix != ".jinja" or not path.is_file():
            raise UserError(
                f"model.chat_template: {chat_template!r} is neither a built-in template ({', '.join(sorted(TEMPLATES))}) nor a "
                ".jinja file: set one of these, or remove the setting to use the tokenizer's own template"
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
            "the model's tokenizer has no eos_token, so no response could end: set one in its tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return Chat(tokenizer, template, _stop_id(tokenizer))


def _render(chat: Chat, messages: Messages, tools: Tools, **options: Any) -> str:
    try:
        return str(chat.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"model.chat_template: {chat.template} rejects a conversation of {roles} ({error}): choose another template"
        ) from error


def _stop_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the first special token that the template puts after a response, or else the tokenizer's end of sequence."""
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": PROBE}]
    try:
        text = str(tokenizer.apply_chat_template(probe, tokenize=False))
    except TemplateError as error:
        raise UserError(
            f"model.chat_template: fails on a plain question and answer ({error}): choose another template"
        ) from error
    _, found, end = text.rpartition(PROBE)
    if not found:
        raise UserError("model.chat_template: leaves out the assistant's response: choose another template")
    special = set(tokenizer.all_special_ids)
    after = tokenizer(end, add_special_tokens=False)["input_ids"]
    return int(next((token for token in after if token in special), tokenizer.eos_token_id))


def _difference(expected: str, found: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found))
    return f"{expected[at : at + 30]!r} becomes {found[at : at + 30]!r}"
