"""From messages to tokens: the one chat template and completion mask that every stage uses.

SFT, reference scoring, DPO and evaluation all read their tokens from here, so a prompt is the same sequence in each of
them, and the same one that a served model sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def _render(chat: Chat, messages: Messages, tools: Tools, **options: Any) -> str:
    try:
        return str(chat.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"model.chat_template: {chat.template} refuses a conversation of {roles} ({error}): choose another template"
        ) from error


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
