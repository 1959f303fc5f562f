"""A tokenizer's chat template as a function from messages to text, and what trials of it show about its format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from posttrain.chat.message_form import OPEN, Messages, Tools, as_calls, join_thoughts, split_thoughts
from posttrain.chat.time_limit import TimeLimitExceeded, time_limit
from posttrain.compat.chat_templates import compile_template
from posttrain.errors import UserError

PROBE = "posttrain-probe"
"""A text that no template contains."""
THOUGHT = "posttrain-thought"
QUESTION = {"role": "user", "content": "posttrain-question"}
ARGUMENTS = {"posttrain-key": "posttrain-value"}
CALL = {"id": "call00001", "type": "function", "function": {"name": "posttrain-tool", "arguments": ARGUMENTS}}
TOOL = {
    "type": "function",
    "function": {
        "name": "posttrain-tool",
        "description": "Looks something up.",
        "parameters": {"type": "object", "properties": {"posttrain-key": {"type": "string", "description": "A key."}}},
    },
}
ERRORS = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip
"""What a template raises if it refuses a conversation, on purpose or not."""
SECONDS = 20.0
"""The longest time that rendering one conversation may take."""


class TemplateRefusesError(Exception):
    """The chat template cannot render a conversation."""


class Renderer:
    """Renders conversations as `apply_chat_template` does, and knows in which form the template takes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._template = compile_template(tokenizer.get_chat_template())
        self._tokens = dict(tokenizer.special_tokens_map)

    def text(self, messages: Messages, tools: Tools = None, *, ask: bool = False) -> str:
        """Return the text of a conversation.

        Args:
            messages: in the template's form, as `form` returns them.
            ask: end with the generation prompt.

        Raises:
            TemplateRefusesError: with the template's reason.
            UserError: the template does not come to an end.
        """
        try:
            with time_limit(SECONDS):
                return self._template.render(messages=messages, tools=tools, add_generation_prompt=ask, **self._tokens)
        except TimeLimitExceeded as error:
            raise UserError(
                f"model.chat_template: rendering one conversation takes more than {SECONDS:g} seconds: choose another template"
            ) from error
        except ERRORS as error:
            raise TemplateRefusesError(str(error) or type(error).__name__) from error

    def form(self, turn: Mapping[str, Any], *, is_answer: bool = False) -> dict[str, Any]:
        """Return a stored turn as a message in the form that the template takes.

        Args:
            is_answer: it is the answer to train on, whose thoughts go into its text if the template takes them no other way.
        """
        if len(turn) == 2 and turn["role"] != "assistant" and not self.takes_parts:
            return dict(turn)
        message = {key: value for key, value in turn.items() if value is not None and key != "weight"}
        content = message.get("content") or ""
        if message["role"] == "assistant":
            thoughts = message.pop("reasoning_content", None)
            if not thoughts and self.splits_thoughts:
                thoughts, content = split_thoughts(content)
            if thoughts and not self.reads_thoughts and is_answer:
                thoughts, content = "", join_thoughts(thoughts, content)
            if thoughts:
                message |= {"reasoning_content": thoughts, "thinking": thoughts}
        if message.get("tool_calls"):
            message["tool_calls"] = as_calls(message["tool_calls"], as_text=self.takes_arguments_as_text)
        message["content"] = [{"type": "text", "text": content}] if self.takes_parts else content
        return message

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template shows the content of messages only as a list of parts, as those of vision models do."""
        parts = [{"type": "text", "text": PROBE}]
        plain = self._try([QUESTION, {"role": "assistant", "content": PROBE}])
        if PROBE in plain and QUESTION["content"] in plain:
            return False
        asked = {**QUESTION, "content": [{"type": "text", "text": QUESTION["content"]}]}
        text = self._try([asked, {"role": "assistant", "content": parts}])
        return PROBE in text and QUESTION["content"] in text

    @cached_property
    def needs_thoughts(self) -> bool:
        """Whether the template refuses an answer without thoughts."""
        return not self._try([self._question, self._say(PROBE)]) and bool(self._thinking)

    @cached_property
    def reads_thoughts(self) -> bool:
        """Whether the template shows thoughts that have their own key."""
        return THOUGHT in self._thinking

    @cached_property
    def splits_thoughts(self) -> bool:
        """Whether thoughts must be in their own key: the template has its own marks for them, or leaves them out of the text."""
        return self.reads_thoughts and (
            OPEN not in self._thinking
            or THOUGHT not in self._try([self._question, self._say(join_thoughts(THOUGHT, PROBE))])
        )

    @cached_property
    def takes_arguments_as_text(self) -> bool:
        """Whether the arguments of tool calls must be JSON text, because the template cannot write an object as JSON."""
        as_object, as_text = (self._try([self._question, call, self._result]) for call in self._calls)
        pair = '"posttrain-key": "posttrain-value"'
        return pair not in as_object and (pair in as_text or not as_object)

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template shows the tools that it is given."""
        return "posttrain-tool" in self._try([self._question], [TOOL], ask=True)

    @cached_property
    def around_question(self) -> tuple[str, str]:
        """The text before a first question and after it, up to the answer."""
        before, _, after = self._try([self._question], ask=True).partition(str(QUESTION["content"]))
        return before, after

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the generation prompt opens a thought, so that the answer begins with it."""
        return self.around_question[1].rstrip().endswith(OPEN)

    @cached_property
    def answered(self) -> str:
        """The text of a question and an answer; empty if the template refuses it."""
        return self._try([self._question, self._say(PROBE, THOUGHT if self.needs_thoughts else None)])

    @cached_property
    def after_answer(self) -> str:
        """The text after the last answer."""
        return self.answered.rpartition(PROBE)[2]

    @cached_property
    def after_call(self) -> str:
        """The text after an answer that calls a tool, from the arguments on; empty if the template has no such answers."""
        call = self._calls[self.takes_arguments_as_text]
        return self._try([self._question, call], [TOOL]).rpartition("posttrain-value")[2]

    @cached_property
    def _thinking(self) -> str:
        return self._try([self._question, self._say(PROBE, THOUGHT)])

    @property
    def _question(self) -> dict[str, Any]:
        return {**QUESTION, "content": self._content(str(QUESTION["content"]))}

    @property
    def _result(self) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": "call00001", "name": "posttrain-tool", "content": self._content("ok")}

    @property
    def _calls(self) -> list[dict[str, Any]]:
        """The same call of a tool, with its arguments as an object and as text."""
        return [
            {"role": "assistant", "content": "", "tool_calls": as_calls([CALL], as_text=as_text)}
            for as_text in (False, True)
        ]

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self.takes_parts else text

    def _say(self, content: str, thoughts: str | None = None) -> dict[str, Any]:
        message = {"role": "assistant", "content": self._content(content)}
        return message | {"reasoning_content": thoughts, "thinking": thoughts} if thoughts else message

    def _try(self, messages: Messages, tools: Tools = None, *, ask: bool = False) -> str:
        try:
            return self.text(messages, tools, ask=ask)
        except TemplateRefusesError:
            return ""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the text of every special token, also of those without a name, except white space."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return [text for text in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if not text.isspace()]


def any_of(texts: list[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the texts, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
