"""A conversation as text: the prompt, the completion that follows it, and what of the conversation is not in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.chat.control_tokens import unmarked
from posttrain.chat.message_form import CLOSE, OPEN, Messages, Tools, as_calls, join_thoughts, thoughts_of
from posttrain.chat.renderer import TemplateRefusesError
from posttrain.chat.template import Chat


@dataclass(frozen=True)
class Completion:
    """The text that follows a prompt, up to and including the stop token."""

    text: str
    left_out: tuple[str, ...] = ()
    """What the template leaves out of the answer: thoughts, content, tool calls."""
    restored: bool = False
    """The thoughts that the template leaves out are in the text."""


def render_prompt(chat: Chat, prompt: Messages, tools: Tools) -> str:
    """Return the text of a prompt, up to where the answer begins.

    Raises:
        TemplateRefusesError: with the template's reason.
    """
    return chat.renderer.text([*map(chat.renderer.form, prompt)], tools, ask=True)


def render_completion(
    chat: Chat, prompt: Messages, tools: Tools, prompt_text: str, answer: Mapping[str, Any]
) -> Completion:
    """Return the text of an answer.

    Thoughts that the template takes out of an answer, as it does for earlier answers, are put back: the model is to write
    them.

    Args:
        prompt_text: as `render_prompt` returned it.

    Raises:
        TemplateRefusesError: with the template's reason, or because the prompt becomes another one once an answer follows.
    """
    messages = [*map(chat.renderer.form, prompt), chat.renderer.form(answer, is_answer=True)]
    text = chat.renderer.text(messages, tools)
    if text.startswith(prompt_text):
        tail = text[len(prompt_text) :]
        if len(answer) == 2 and CLOSE not in answer["content"] and answer["content"].strip() in tail:  # the usual case
            return Completion(_until_stop(chat, tail, calls=False))
    else:
        asked = _text_or_nothing(chat, messages[:-1], tools)
        tail = _after_opened_thought(asked, prompt_text, text, thoughts_of(answer)[0])
    restored, left_out = _find_left_out(chat, answer, prompt_text, tail)
    stopped = _until_stop(chat, restored or tail, calls=bool(answer.get("tool_calls")))
    return Completion(stopped, left_out, restored is not None)


def left_out_of_prompt(prompt: Messages, tools: Tools, text: str) -> list[str]:
    """Return what a prompt's text does not contain: contents by role, thoughts of earlier answers, tool calls, tools."""
    found = []
    for turn in prompt:
        thoughts, content = thoughts_of(turn) if turn["role"] == "assistant" else ("", turn["content"])
        if not _contains(text, content):
            found.append(f"{turn['role']} message")
        if thoughts and not _contains(text, thoughts):
            found.append("earlier thoughts")
        if turn.get("tool_calls") and not _contains_calls(text, turn["tool_calls"]):
            found.append("earlier tool calls")
    if tools and not all(_contains(text, name) for name in map(_tool_name, tools)):
        found.append("tools")
    return list(dict.fromkeys(found))


def _after_opened_thought(asked: str, prompt_text: str, text: str, thoughts: str) -> str:
    """Return what follows a prompt that opens a thought, where the template writes finished answers without it.

    The thought is closed after the answer's own thoughts, or at once if it has none.

    Args:
        asked: the prompt without the generation prompt.
        text: the whole conversation.
    """
    opening = prompt_text[len(asked) :] if prompt_text.startswith(asked) and text.startswith(asked) else ""
    header, mark, rest = opening.partition(OPEN)
    if mark and text.startswith(asked + header):
        body = text[len(asked + header) :].lstrip("\n")
        if not rest.strip():
            answer = body.partition(CLOSE)[2].lstrip("\n") if body.startswith(OPEN) else body
            return f"{thoughts.strip(chr(10))}\n{CLOSE}\n\n{answer}"
        if rest.strip() == CLOSE and not thoughts:
            return body
    if rest.strip() == CLOSE:
        raise TemplateRefusesError(
            "the answer has thoughts, and the generation prompt turns thinking off: set model.chat_template_kwargs: "
            "{enable_thinking: true}"
        )
    raise TemplateRefusesError(
        f"it renders the prompt differently once an answer follows ({_difference(prompt_text, text)}), so the model would be "
        "trained on prompts that it never sees when it is used"
    )


def _text_or_nothing(chat: Chat, messages: Messages, tools: Tools) -> str:
    try:
        return chat.renderer.text(messages, tools)
    except TemplateRefusesError:
        return ""


def _find_left_out(
    chat: Chat, answer: Mapping[str, Any], prompt_text: str, tail: str
) -> tuple[str | None, tuple[str, ...]]:
    """Return the text with thoughts put back, or None if there is nothing to put back; and what the template leaves out."""
    thoughts, content = thoughts_of(answer)
    calls = answer.get("tool_calls")
    found = []
    restored = None
    place = tail.find(content.strip()) if content.strip() else 0
    if place < 0:
        found.append("content")
    own = thoughts and chat.renderer.form({**answer, "reasoning_content": thoughts, "content": content}, is_answer=True)
    if thoughts and not _contains(tail, thoughts):
        found.append("thoughts")
        if place >= 0 and not tail[:place].strip():
            restored = join_thoughts(thoughts, tail[place:])
            if prompt_text.rstrip().endswith(OPEN):
                restored = restored.removeprefix(OPEN).lstrip("\n")
    elif own and not own.get("reasoning_content") and answer.get("reasoning_content"):
        found.append("thoughts")
        restored = tail
    if calls and not _contains_calls(tail, calls):
        found.append("tool calls")
    return restored, tuple(found)


def _until_stop(chat: Chat, tail: str, *, calls: bool) -> str:
    """Return an answer's text up to its first stop token, which is appended if the template writes none."""
    stop_id = chat.call_stop_id if calls else chat.stop_id
    stop = str(chat.tokenizer.convert_ids_to_tokens(stop_id))
    after = chat.renderer.after_call if calls else chat.renderer.after_answer
    if after and tail.endswith(after):
        end = len(tail) - len(after)
        place = after.find(stop)
        return tail[: end + place] + stop if place >= 0 else tail + stop
    place = tail.rfind(stop)
    if place < 0:
        return tail + stop
    while tail[:place].endswith(stop):
        place -= len(stop)
    return tail[:place] + stop


def _contains(text: str, part: Any) -> bool:
    """Return whether a text contains another one, apart from white space and escaped quotes."""
    part = str(part).strip()
    return part in text or _bare(part) in _bare(text)


def _bare(text: str) -> str:
    return "".join(unmarked(text).replace("\\n", "").replace("\\", "").split())


def _contains_calls(text: str, calls: Any) -> bool:
    for call in as_calls(calls, as_text=False):
        inner = call.get("function", call)
        if not all(_contains(text, value) for value in (inner.get("name", ""), *_leaves(inner.get("arguments")))):
            return False
    return True


def _leaves(value: Any) -> list[str]:
    """Return the keys and the texts in an object of JSON."""
    if isinstance(value, Mapping):
        return [str(key) for key in value] + [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value] if isinstance(value, str) else []


def _tool_name(tool: Mapping[str, Any]) -> str:
    inner = tool.get("function", tool)
    return str(inner.get("name", "") if isinstance(inner, Mapping) else json.dumps(inner))


def _n_common(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _difference(expected: str, found: str) -> str:
    at = _n_common(expected, found)
    return f"{expected[at : at + 30]!r} becomes {found[at : at + 30]!r}"
