"""Private parts of transformers: the compiled chat template, and the encoding of control tokens as plain text."""

from __future__ import annotations

import functools
from typing import Any

import jinja2
from transformers.utils import chat_template_utils

LONGEST_PRODUCT = 10**7
"""Characters, entries or bits of the largest value that `*` and `**` may give in a template."""


def compile_template(template: str) -> jinja2.Template:
    """Return a chat template, compiled in the sandbox and with the functions of `apply_chat_template`.

    Reason: `apply_chat_template` copies every message and reads the tokenizer's special tokens in each call, which takes a third
    of the time of rendering; and transformers has no public way to read which variables a template takes.
    Read against: transformers 5.20 to 5.24 (`_compile_jinja_template`).
    Remove when: transformers offers its environment.
    """
    compiled: jinja2.Template = _environment().from_string(template)
    return compiled


@functools.cache
def _environment() -> Any:
    """Return the environment of transformers' templates, in which `*` and `**` have a limit.

    The template is compiled only here, because compiling computes products of constants.
    """
    environment: Any = chat_template_utils._compile_jinja_template("").environment
    environment.intercepted_binops = frozenset({"*", "**"})
    environment.binop_table = {**environment.binop_table, "*": _multiply, "**": _power}
    return environment


def _multiply(left: Any, right: Any) -> Any:
    """Return a product; a text or list may not become so long that it fills the memory in one call."""
    for one, other in ((left, right), (right, left)):
        if hasattr(one, "__len__") and isinstance(other, int) and len(one) * other > LONGEST_PRODUCT:
            raise OverflowError(f"a text or list of {len(one) * other} parts is too long")
    return left * right


def _power(left: Any, right: Any) -> Any:
    """Return a power; an integer may not become so long that computing it takes minutes."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > LONGEST_PRODUCT:
        raise OverflowError(f"{left} ** {right} is too large")
    return left**right


def encode_as_text(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text in which no added token is recognised: `</s>` becomes `<`, `/`, `s`, `>` or similar.

    Reason: `split_special_tokens` leaves out added tokens that are not special, and changes the tokenizer.
    Read against: transformers 5.20 to 5.24 (`_encode_without_added_tokens`).
    Remove when: tokenizers can be called with an option for it.
    """
    return list(tokenizer._encode_without_added_tokens(text))
