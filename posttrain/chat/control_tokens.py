"""Text that spells control tokens: in the middle of a message, at the end of an answer, or as a whole rendered template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.chat.message_form import Messages, texts_of
from posttrain.chat.template import Chat
from posttrain.compat.chat_templates import encode_as_text

START, END = "\U000f0000", "\U000f0001"
"""Marks around a control token that is to be encoded as text. They are private to Unicode, and transformers uses the same."""
_MARKED = re.compile(f"{START}([^{END}]*){END}|[{START}{END}]")

# Ends of turn and beginnings of prompts in the formats of common models.
ENDS = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "</s>", "<eos>"]
ENDS += ["<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<|return|>"]
_BEGIN = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|<\|startoftext\|>|<BOS_TOKEN>|\[gMASK\]<sop>)*\s*"
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|turn>|\[INST\]|<\|START_OF_TURN_TOKEN\|>|<｜User｜>|<｜Assistant｜>"
    r"|<\|(?:system|user|assistant)\|>|<\|start\|>(?:system|user|assistant)"
    r"|(?:###? ?(?:Instruction|Human|User)|USER|Human):.*(?:###? ?(?:Response|Assistant)|ASSISTANT|Assistant):\s*$)",
    re.DOTALL,
)


def is_templated(chat: Chat, messages: Messages) -> bool:
    """Return whether a message is already rendered: it begins with the marks of a chat template, this one or a common one."""
    return any(
        bool(_BEGIN.match(message["content"])) or _unwrapped(chat, message["content"]) is not None
        for message in messages
        if message["role"] in ("user", "assistant") and message.get("content")
    )


def unwrap(chat: Chat, messages: Messages) -> Messages | None:
    """Return a prompt without the template's own marks, which its only message contains; None if they are others."""
    content = _unwrapped(chat, messages[0]["content"]) if len(messages) == 1 else None
    return None if content is None else [{**messages[0], "content": content}]


def _unwrapped(chat: Chat, content: str) -> str | None:
    before, after = (part.strip() for part in chat.renderer.around_question)
    before = before.removeprefix(chat.tokenizer.bos_token or "").strip()
    text = content.strip().removeprefix(chat.tokenizer.bos_token or "").strip()
    fits = len(before) > 2 and len(after) > 2 and text.startswith(before) and text.endswith(after)
    return text[len(before) : -len(after)].strip() if fits and len(text) >= len(before + after) else None


def without_stop(chat: Chat, content: str) -> str:
    """Return an answer's text without stop tokens at its end, which the template adds itself."""
    text = content.rstrip()
    if not text.endswith(("|>", ">", "]")):
        return content
    for stop in sorted(_stops(chat), key=len, reverse=True):
        if text.endswith(stop):
            return without_stop(chat, text.removesuffix(stop).rstrip())
    return content


def _stops(chat: Chat) -> set[str]:
    ids = [*chat.stop_ids, chat.tokenizer.eos_token_id]
    own = {str(chat.tokenizer.convert_ids_to_tokens(i)) for i in ids if i < len(chat.tokenizer)}
    return own | set(ENDS)


def has_control_tokens(chat: Chat, messages: Messages, tools: Any = None) -> bool:
    """Return whether a text of the messages or tools spells a special token."""
    for message in messages:
        pattern = _pattern(chat, message)
        for text in texts_of(message):
            if pattern.search(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)):
                return True
    return bool(tools and chat.control_tokens.search(json.dumps(tools, ensure_ascii=False)))


def mark(chat: Chat, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message in which every control token is marked, so that `encode_marked` encodes it as text."""
    pattern = _pattern(chat, message)
    return {key: value if key == "role" else mark_texts(pattern, value) for key, value in message.items()}


def mark_texts(pattern: re.Pattern[str], value: Any) -> Any:
    """Return a value with the texts in it marked."""
    if isinstance(value, str):
        return pattern.sub(f"{START}\\g<0>{END}", value.replace(START, "").replace(END, ""))
    if isinstance(value, Mapping):
        return {key: mark_texts(pattern, item) for key, item in value.items()}
    return [mark_texts(pattern, item) for item in value] if isinstance(value, list) else value


def unmarked(text: str) -> str:
    """Return a text without marks."""
    return text.replace(START, "").replace(END, "")


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a rendered text, with marked control tokens as plain text."""
    pieces = _MARKED.split(text)
    ids = list(tokenizer.encode(pieces[0], add_special_tokens=False))
    for i, piece in enumerate(pieces[1:], start=1):
        if piece and i % 2:
            ids += _as_text(tokenizer, piece)
        elif piece:
            ids += _after_newline(tokenizer, piece, as_text=False)
    return ids


def _as_text(tokenizer: PreTrainedTokenizerBase, token: str) -> list[int]:
    """Return the tokens of a control token's text. If its vocabulary has the whole text as a piece, it is encoded in halves."""
    ids = _after_newline(tokenizer, token, as_text=True)
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    special.discard(tokenizer.unk_token_id or -1)
    if len(token) > 1 and special & set(ids):
        half = len(token) // 2
        return _as_text(tokenizer, token[:half]) + _as_text(tokenizer, token[half:])
    return ids


def _after_newline(tokenizer: PreTrainedTokenizerBase, piece: str, *, as_text: bool) -> list[int]:
    """Return the tokens of a piece from inside a text: without the space that some tokenizers put before a text."""
    newline = list(tokenizer.encode("\n", add_special_tokens=False))
    whole = "\n" + piece
    ids = encode_as_text(tokenizer, whole) if as_text else list(tokenizer.encode(whole, add_special_tokens=False))
    if ids[: len(newline)] == newline:
        return ids[len(newline) :]
    return encode_as_text(tokenizer, piece) if as_text else list(tokenizer.encode(piece, add_special_tokens=False))


def _pattern(chat: Chat, message: Mapping[str, Any]) -> re.Pattern[str]:
    """Return the control tokens that a message must not spell. Thoughts of the assistant have their marks."""
    return chat.control_tokens_of_answers if message["role"] == "assistant" else chat.control_tokens
