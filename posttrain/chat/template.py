"""The tokenizer with its chat template, which every stage uses.

A prompt has the same tokens in SFT, reference scoring, DPO, evaluation and generation, and in a served model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.chat.message_form import CLOSE, OPEN, Messages
from posttrain.chat.prelude import is_pinned, join_named_templates, pin_template
from posttrain.chat.renderer import PROBE, Renderer, TemplateRefusesError, any_of, special_tokens
from posttrain.errors import UserError

__all__ = ["PROBE", "TEMPLATES", "Chat", "Messages", "TemplateSettings", "prepare_chat"]

END_OF_SEQUENCE = "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
# Line ends are written as expressions, because Jinja drops the one that follows a block.
TEMPLATES = {
    "plain": (
        "{{ bos_token }}{% for m in messages %}{{ m['role'].capitalize() }}: {{ m['content'] }}"
        f"{END_OF_SEQUENCE}{{{{ '\n\n' }}}}{{% endfor %}}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
        f"{END_OF_SEQUENCE}{{{{ '\n' }}}}{{% endfor %}}"
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
class TemplateSettings:
    """What a template renders apart from the conversation."""

    name: str | None = None
    """A name in `TEMPLATES` or of one of the tokenizer's templates, a `.jinja` file, or None for the tokenizer's own."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Values of the template's variables, such as `enable_thinking`."""
    day: date = date(2024, 7, 26)
    """The date that a template with a clock prints."""


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template, and the tokens that end a response."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    """Source of the template: `tokenizer`, the name of a built-in template, or the name of a file."""
    stop_id: int
    """Token that ends every response: the template's end of turn, or else the tokenizer's end of sequence."""
    more_stop_ids: tuple[int, ...] = ()
    """Further tokens that end a generation: those of the base model's own configuration."""
    settings: TemplateSettings = TemplateSettings()

    @cached_property
    def stop_ids(self) -> list[int]:
        """Return the ids of all tokens that end a generation, for `generation_config.json`."""
        found = {self.stop_id, self.call_stop_id, self.tokenizer.eos_token_id, *self.more_stop_ids}
        return sorted(found - {None})

    @cached_property
    def call_stop_id(self) -> int:
        """Token that ends a response which calls a tool. It differs from `stop_id` in few templates."""
        if str(self.tokenizer.convert_ids_to_tokens(self.stop_id)) in self.renderer.after_call:
            return self.stop_id
        last = list(self.control_tokens.finditer(self.renderer.after_call.rstrip()))[-1:]
        ends = last and last[0].end() == len(self.renderer.after_call.rstrip())
        return int(self.tokenizer.convert_tokens_to_ids(last[0][0])) if ends else self.stop_id

    @cached_property
    def renderer(self) -> Renderer:
        """The template as a function."""
        return Renderer(self.tokenizer)

    @cached_property
    def control_tokens(self) -> re.Pattern[str]:
        """Matches the text of any special token."""
        return any_of(special_tokens(self.tokenizer))

    @cached_property
    def control_tokens_of_answers(self) -> re.Pattern[str]:
        """Matches the text of any special token that is no mark of thoughts."""
        return any_of([token for token in special_tokens(self.tokenizer) if token not in (OPEN, CLOSE)])

    @property
    def has_clock(self) -> bool:
        """Whether the template prints a date. It is `settings.day` in every stage."""
        return is_pinned(str(self.tokenizer.chat_template))

    @cached_property
    def digest(self) -> str:
        """sha256 of what decides the tokens of a conversation: vocabulary, chat template and stop token."""
        # Reading a saved template turns its line ends into \n, and Jinja renders all of them as \n.
        template = (
            json.dumps(self.tokenizer.chat_template, sort_keys=True).replace(r"\r\n", r"\n").replace(r"\r", r"\n")
        )
        about = (sorted(self.tokenizer.get_vocab().items()), template, self.stop_id)
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def prepare_chat(
    tokenizer: PreTrainedTokenizerBase,
    settings: TemplateSettings = TemplateSettings(),
    more_stop_ids: Sequence[int] = (),
) -> Chat:
    """Return the tokenizer with a chat template.

    Args:
        more_stop_ids: tokens that end a generation according to the base model.

    Raises:
        UserError: the template does not exist or fails, or the tokenizer has no token that could end a response.
    """
    if tokenizer.eos_token is None:
        raise UserError(
            "the model's tokenizer has no eos_token, so no response could end: set one in its tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    name, template = _find_template(tokenizer, settings.name)
    tokenizer.chat_template = pin_template(template, dict(settings.kwargs), settings.day)
    return Chat(tokenizer, name, _stop_id(tokenizer), tuple(more_stop_ids), settings)


def _find_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> tuple[str, str]:
    """Return the name of the template that the settings mean, and its text."""
    own = tokenizer.chat_template
    if name and isinstance(own, dict) and name in own:
        return name, own[name]
    name = name or ("tokenizer" if own else "plain")
    if name in TEMPLATES:
        # A tokenizer that knows ChatML's own end of turn needs no second one.
        ends = "<|im_end|>" in tokenizer.added_tokens_encoder
        return name, TEMPLATES[name].replace(END_OF_SEQUENCE, "") if name == "chatml" and ends else TEMPLATES[name]
    if name == "tokenizer" and own:
        return name, join_named_templates(own) if isinstance(own, dict) else own
    path = Path(name)
    if path.suffix != ".jinja" or not path.is_file():
        named = f"one of the tokenizer's ({', '.join(sorted(own))}), " if isinstance(own, dict) else ""
        raise UserError(
            f"model.chat_template: {name!r} is neither {named}a built-in template ({', '.join(sorted(TEMPLATES))}) nor a "
            ".jinja file: set one of these, or remove the setting to use the tokenizer's own template"
        )
    try:
        return path.name, path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"model.chat_template: {name} is not UTF-8 text: {error}: save it as UTF-8") from error


def _stop_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the first special token that the template puts after a response, or else the tokenizer's end of sequence."""
    renderer = Renderer(tokenizer)
    if not renderer.answered:
        try:
            renderer.text([{"role": "user", "content": "question"}, {"role": "assistant", "content": PROBE}])
        except TemplateRefusesError as error:
            raise UserError(
                f"model.chat_template: fails on a plain question and answer ({error}): choose another template"
            ) from error
    if PROBE not in renderer.answered:
        raise UserError("model.chat_template: leaves out the assistant's response: choose another template")
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
    for tokens in (special_tokens(tokenizer), added):
        if found := any_of(tokens).search(renderer.after_answer):
            return int(tokenizer.convert_tokens_to_ids(found[0]))
    return int(tokenizer.eos_token_id)
