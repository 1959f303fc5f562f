"""Private parts of transformers: the compiled chat template, and the encoding of control tokens as plain text."""

from __future__ import annotations

from typing import Any

import jinja2
from transformers.utils import chat_template_utils


def compile_template(template: str) -> jinja2.Template:
    """Return a chat template, compiled in the sandbox and with the functions of `apply_chat_template`.

    Reason: `apply_chat_template` copies every message and reads the tokenizer's special tokens in each call, which takes a third
    of the time of rendering; and transformers has no public way to read which variables a template takes.
    Read against: transformers 5.20 to 5.24 (`_compile_jinja_template`).
    Remove when: transformers offers its environment.
    """
    compiled: jinja2.Template = chat_template_utils._compile_jinja_template(template)
    return compiled


def encode_as_text(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text in which no added token is recognised: `</s>` becomes `<`, `/`, `s`, `>` or similar.

    Reason: `split_special_tokens` leaves out added tokens that are not special, and changes the tokenizer.
    Read against: transformers 5.20 to 5.24 (`_encode_without_added_tokens`).
    Remove when: tokenizers can be called with an option for it.
    """
    return list(tokenizer._encode_without_added_tokens(text))
