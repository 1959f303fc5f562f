"""Write the page of chat templates: `python -m docs.chat_templates`.

Every template that ships with TRL renders twelve conversations, and the tokens are compared with those of `apply_chat_template`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.chat.findings import Findings
from posttrain.chat.template import Chat, prepare_chat
from posttrain.chat.tokenise import EncodedRow, encode_rows

PAGE = Path(__file__).parent / "chat-templates.md"
TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SPECIAL = re.compile(
    r"<[|｜][^<>\n']{1,40}?[|｜]>|</?s>|<(?:start|end)_of_turn>|<bos>|<eos>|<\|turn>|<turn\|>|<end_of_utterance>"
)
"""What a template writes as one token, in the formats of common models."""

CALL = {"type": "function", "function": {"name": "lookup", "arguments": {"what": "rain"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Looks up.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string", "description": "What."}}},
    },
}


def _turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASK, ANSWER = _turn("user", "Does it rain?"), _turn("assistant", "Yes, it rains.")
CALLING = _turn("assistant", "", tool_calls=json.dumps([CALL]))
RESULT = _turn("tool", "42", name="lookup")
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], bool]] = {
    "question": ([ASK], ANSWER, False),
    "system": ([_turn("system", "Be kind."), ASK], ANSWER, False),
    "empty system": ([_turn("system", ""), ASK], ANSWER, False),
    "turns": ([_turn("user", "Hi"), _turn("assistant", "Hello"), ASK], ANSWER, False),
    "white space": ([_turn("user", "  Hi\n\n there ")], _turn("assistant", "a\n\n  b"), False),
    "spaces at the ends": ([ASK], _turn("assistant", " Yes. \n"), False),
    "other scripts": ([_turn("user", "Où? 雨 🌧")], _turn("assistant", "Là, 雨 🌧."), False),
    "thoughts": ([ASK], _turn("assistant", "Yes.", reasoning_content="It is wet."), False),
    "<think>": ([ASK], _turn("assistant", "<think>\nIt is wet.\n</think>\n\nYes."), False),
    "tools": ([ASK], ANSWER, True),
    "tool result": ([ASK, CALLING, RESULT], ANSWER, True),
    "tool call": ([ASK], CALLING, True),
}
"""Prompt, answer, and whether a tool is given."""
MEANINGS = {
    "=": "prompt and answer have the tokens of `apply_chat_template`, and the answer ends with one stop token",
    "t": "as =, and the thoughts that the template takes out of the answer are put back",
    "o": "the generation prompt opens a thought, which the template leaves out of finished answers: it is closed",
    "f": "thoughts written as `<think>` are handed over in the template's own format",
    "n": "the template leaves text out, which is counted",
    "r": "the template refuses the row, which is counted",
}


def byte_tokenizer(
    special: Sequence[str], template: Any = None, bos: str = "<s>", eos: str = "</s>", plain: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes and the given special tokens.

    Args:
        plain: added tokens that are not special.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*dict.fromkeys([bos, eos, *special])])
    backend.add_tokens(list(plain))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def trl_template(name: str) -> str:
    """Return the text of a chat template that ships with TRL."""
    return (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def template_names() -> list[str]:
    """Return the names of TRL's templates."""
    return sorted(path.stem for path in TRL_TEMPLATES.glob("*.jinja"))


def prepared(name: str) -> Chat:
    """Return a template of TRL with a tokenizer that has its special tokens."""
    template = trl_template(name)
    return prepare_chat(byte_tokenizer(sorted(set(SPECIAL.findall(template))), template))


def outcome(chat: Chat, conversation: str) -> str:
    """Return how a template renders a conversation: a letter of `MEANINGS`.

    Raises:
        AssertionError: the tokens differ from those of `apply_chat_template` for none of these reasons.
    """
    prompt, answer, has_tool = CONVERSATIONS[conversation]
    tools = [TOOL] if has_tool else None
    row = {"id": "a", "prompt": prompt, "completion": [answer], "tools": json.dumps(tools) if tools else None}
    findings = Findings()
    rows = encode_rows(chat, Dataset.from_list([row]), ("completion",), findings)
    if not rows:
        assert set(findings.found) == {"template_refuses"}, findings
        return "r"
    return _compare(
        chat, rows[0], findings, ([plain_message(chat, turn) for turn in prompt], plain_message(chat, answer), tools)
    )


def _compare(chat: Chat, row: EncodedRow, findings: Findings, given: tuple[Any, Any, Any]) -> str:
    prompt, answer, tools = given
    decode, ids = chat.tokenizer.decode, row.answers_ids[0]
    stops = {chat.stop_id, chat.call_stop_id}
    assert ids[-1] in stops, decode(ids)
    assert ids.count(ids[-1]) == 1, decode(ids)
    asked = _apply(chat, prompt, tools, ask=True)
    if asked is not None:
        assert row.prompt_ids == chat.tokenizer(asked, add_special_tokens=False)["input_ids"], (
            decode(row.prompt_ids),
            asked,
        )
    whole = _apply(chat, [*prompt, answer], tools, ask=False)
    text = decode(row.prompt_ids) + decode(ids[:-1])
    left_out = [name for name in findings.left_out if name != "earlier thoughts"]
    if whole is not None and whole.startswith(text):
        return "n" if left_out else "="
    if set(left_out) == {"thoughts"}:
        return "t"
    if chat.renderer.opens_thought:
        return "o"
    if left_out:
        return "n"
    assert chat.renderer.splits_thoughts, (text, whole)
    assert "<think>" in str(answer["content"]), (text, whole)
    return "f"


def plain_message(chat: Chat, turn: dict[str, Any]) -> dict[str, Any]:
    """Return a message as a caller of `apply_chat_template` writes it."""
    message = dict(turn)
    if "tool_calls" in message:
        calls = json.loads(message["tool_calls"])
        if chat.renderer.takes_arguments_as_text:
            calls[0]["function"]["arguments"] = json.dumps(calls[0]["function"]["arguments"])
        message["tool_calls"] = calls
    if chat.renderer.takes_parts:
        message["content"] = [{"type": "text", "text": message["content"]}]
    return message


def _apply(chat: Chat, messages: Any, tools: Any, *, ask: bool) -> str | None:
    try:
        text = chat.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=ask)
    except (TemplateError, TypeError):
        return None
    return str(text)


def page() -> str:
    """Return the page."""
    heads = ["template", "stop token", *CONVERSATIONS]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in template_names():
        chat = prepared(name)
        stop = str(chat.tokenizer.decode([chat.stop_id])).replace("|", "\\|")
        cells = [outcome(chat, conversation) for conversation in CONVERSATIONS]
        lines.append(f"| {name} | `{stop}` | " + " | ".join(cells) + " |")
    legend = "\n".join(f"- **{letter}** {meaning}" for letter, meaning in MEANINGS.items())
    return (
        "# Chat templates\n\n<!-- Generated by `python -m docs.chat_templates`; a test compares this page with the code. -->\n\n"
        f"The {len(template_names())} chat templates that ship with TRL {trl.__version__}, each with twelve conversations. "
        "The tokens of the prompt are always those of `apply_chat_template`, and every answer ends with exactly one stop token. "
        "The tokenizers are made of bytes and the special tokens of the template; `</s>` stands for the end of sequence where "
        f"the template writes no end of turn.\n\n{legend}\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
