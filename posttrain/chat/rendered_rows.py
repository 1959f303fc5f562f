"""Rows of the data as text: checked, corrected by the policies, and rendered with the chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.chat.control_tokens import has_control_tokens, is_templated, mark, mark_texts, unwrap, without_stop
from posttrain.chat.findings import Findings
from posttrain.chat.message_form import OPEN, Messages, Tools, thoughts_of
from posttrain.chat.renderer import TemplateRefusesError
from posttrain.chat.rendering import left_out_of_prompt, render_completion, render_prompt
from posttrain.chat.template import Chat

Turn = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A prompt and the answers to it, before rendering. Turns have only the keys that they use."""

    where: str
    """Source and id of the row."""
    prompt: Messages
    tools: Tools
    answers: Sequence[Turn]


@dataclass(frozen=True)
class RenderedRow:
    """A prompt and the completions that follow it, as text."""

    conversation: Conversation
    """As it was rendered: corrected by the policies."""
    prompt: str
    completions: tuple[str, ...]
    marked: bool = False
    """Control tokens in the text are marked, and are to be encoded as text."""


def render_row(chat: Chat, row: Conversation, findings: Findings) -> RenderedRow | None:
    """Return the text of a row, or None if it is dropped. Findings are counted."""
    findings.n_rows += 1
    row, dropped = _without_stops(chat, row, findings)
    if dropped:
        return None
    if is_templated(chat, [*row.prompt, *row.answers]):
        unwrapped = _unwrapped(chat, row, findings)
        if unwrapped is None:
            return None
        row = unwrapped
    marked = False
    if has_control_tokens(chat, [*row.prompt, *row.answers], row.tools):
        if findings.add("control_tokens", row.where):
            return None
        if marked := findings.policy("control_tokens") == "escape":
            row = _marked(chat, row)
    try:
        found = _render(chat, row, findings)
    except TemplateRefusesError as error:
        folded = _folded(row) if findings.policy("template_refuses") == "fold" else None
        try:
            found = None if folded is None else _render(chat, folded, findings)
        except TemplateRefusesError:
            folded = None
        if findings.add("template_refuses", row.where, str(error)) or folded is None:
            findings.dropped["template_refuses"] += findings.policy("template_refuses") == "fold"
            return None
    return found and replace(found, marked=marked)


def _render(chat: Chat, row: Conversation, findings: Findings) -> RenderedRow | None:
    prompt = render_prompt(chat, row.prompt, row.tools)
    completions = [render_completion(chat, row.prompt, row.tools, prompt, answer) for answer in row.answers]
    missing = left_out_of_prompt(row.prompt, row.tools, prompt)
    missing += dict.fromkeys(name for completion in completions for name in completion.left_out)
    findings.left_out.update(missing)
    missing = [name for name in missing if name != "earlier thoughts"]  # templates leave them out on purpose
    if missing and findings.add("template_leaves_out", row.where, ", ".join(missing)):
        return None
    if chat.renderer.opens_thought and prompt.rstrip().endswith(OPEN):
        bare = not all(thoughts_of(answer)[0] for answer in row.answers)
        if bare and findings.add("no_thoughts", row.where):
            return None
    return RenderedRow(row, prompt, tuple(completion.text for completion in completions))


def _without_stops(chat: Chat, row: Conversation, findings: Findings) -> tuple[Conversation, bool]:
    """Return the row without stop tokens at the end of its answers, and whether it is dropped for them."""
    contents = [without_stop(chat, answer["content"]) if answer.get("content") else None for answer in row.answers]
    if all(
        content is None or content == answer["content"] for content, answer in zip(contents, row.answers, strict=True)
    ):
        return row, False
    answers = [
        {**answer, "content": content} if content is not None else answer
        for content, answer in zip(contents, row.answers, strict=True)
    ]
    return replace(row, answers=answers), findings.add("stop_in_answer", row.where)


def _unwrapped(chat: Chat, row: Conversation, findings: Findings) -> Conversation | None:
    """Apply the policy for rows that are already templated."""
    start = next(turn["content"].strip() for turn in [*row.prompt, *row.answers] if turn.get("content"))
    dropped = findings.add("already_templated", row.where, f"{start[:40]!r}")
    if findings.policy("already_templated") != "unwrap":
        return None if dropped else row
    prompt = unwrap(chat, row.prompt)
    if prompt is None:
        findings.dropped["already_templated"] += 1
        return None
    return replace(row, prompt=prompt)


def _marked(chat: Chat, row: Conversation) -> Conversation:
    return replace(
        row,
        prompt=[mark(chat, turn) for turn in row.prompt],
        answers=[mark(chat, answer) for answer in row.answers],
        tools=mark_texts(chat.control_tokens, row.tools),
    )


def _folded(row: Conversation) -> Conversation | None:
    """Return the row with its system message in front of the first user message; None if it has none."""
    if [turn["role"] for turn in row.prompt[:2]] != ["system", "user"]:
        return None
    system, user, *rest = row.prompt
    return replace(row, prompt=[{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest])


def earlier_answers(row: Conversation) -> Iterator[tuple[Messages, Turn]]:
    """Yield each earlier answer in a prompt, with the messages before it."""
    for i, turn in enumerate(row.prompt):
        if turn["role"] == "assistant":
            yield row.prompt[:i], turn
