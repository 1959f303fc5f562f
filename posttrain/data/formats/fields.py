"""What becomes of the columns of a source: they are read by its layout, added to the prompt, or counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config import Source
from posttrain.config.layouts import CONTEXT_COLUMNS, OPTIONAL_COLUMNS, PROVENANCE, SCORES
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Parsed, Values
from posttrain.data.formats.turns import MESSAGE_KEYS, as_text, as_turns
from posttrain.data.rows import Turn

_MEDIA = frozenset(f"{name}{s}" for name in ("image", "video", "audio") for s in ("", "s"))
_CONTENT = (
    CONTEXT_COLUMNS
    | _MEDIA
    | {"instruction", "question", "documents", "passages", "functions"}
    | {f"{part}{name}" for part in ("", "chosen_", "rejected_") for name in ("reasoning_content", "thinking")}
)
"""Columns whose content changes what the model should say. They are part of the prompt, or the row is `unread_content`."""
_ANNOTATOR = re.compile(r"annotator_?\d+|annotators_agree")


class Fields:
    """Accounts for the columns of a source and the keys of its messages."""

    def __init__(self, source: Source, name: str, columns: Sequence[str], is_demo: bool = False) -> None:
        """Start without rows.

        Args:
            source: the source.
            name: its layout.
            columns: the columns that the layout requires.
            is_demo: the source is the demo.
        """
        self._own = frozenset(columns) | OPTIONAL_COLUMNS.get(name, frozenset())
        known = self._own | {"tools", PROVENANCE} | ({"true_margin"} if is_demo else set())
        self._known = known | ({"lang", "language"} if source.languages is not None else set())
        self.unread: Counter[str] = Counter()
        """Number of rows in which each column, or key of messages, that nothing reads held something."""

    def add_context(self, parsed: Parsed, values: Values, has_media: bool) -> Parsed | Unusable:
        """Return a pair or example with the content of further columns in its prompt.

        It is unusable if a column or message changes what the model should say and cannot be added to the prompt.

        Args:
            parsed: the pair or example in the row.
            values: the row.
            has_media: what `count` returned for the row.

        Raises:
            Unusable: the prompt has another system message than the column.
        """
        if not self._known.issuperset(values) and (names := self._content(values)):
            prompt = list(parsed.prompt)
            for name in sorted(names):
                has_media |= not _add(prompt, name, values[name])
            parsed = parsed._replace(prompt=prompt)
        return Unusable("unread_content", parsed) if has_media else parsed

    def _content(self, values: Values) -> set[str]:
        """Return the columns that change what the model should say, and that the layout does not read."""
        return {name for name in (values.keys() & _CONTENT) - self._known if holds(values[name])}

    def count(self, values: Values) -> bool:
        """Count the columns of a row, and the keys of its messages, that nothing reads.

        Returns:
            Whether a message holds images, videos or audio.
        """
        has_media = False
        for name, value in values.items():
            if name not in self._known and name not in CONTEXT_COLUMNS and holds(value) and not _is_used(name, values):
                self.unread[name] += 1
            if type(value) is list and (keys := _unread_keys(value)):
                self.unread.update(f"{name}[].{key}" for key in keys)
                has_media |= not keys.isdisjoint(_MEDIA)
        return has_media


def _is_used(name: str, values: Values) -> bool:
    return _ANNOTATOR.fullmatch(name) is not None or any(
        name in both for both in SCORES if both[0] in values and both[1] in values
    )


def _unread_keys(messages: list[Any]) -> set[str]:
    return {
        key
        for message in messages
        if isinstance(message, Mapping) and len(message) > 2 and ("role" in message or "from" in message)
        for key in message.keys() - MESSAGE_KEYS
        if holds(message[key])
    }


def holds(value: Any) -> bool:
    """Return whether a value is something: not null, NaN, an empty or blank text, or a list of such values."""
    if value is None or value != value:
        return False
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list | dict):
        return any(map(holds, value.values() if isinstance(value, dict) else value))
    return True


def _add(prompt: list[Turn], name: str, value: Any) -> bool:
    """Add the content of a column to a prompt and return whether it is in the prompt."""
    if isinstance(value, str) and any(value.strip() in turn["content"] for turn in prompt):
        return True
    if name == "history" and len(prompt) - (prompt[:1] != [] and prompt[0]["role"] == "system") == 1:
        prompt[-1:-1] = _history(value)
        return True
    if not isinstance(value, str) or not prompt:
        return False
    if name in ("system", "system_prompt"):
        if prompt[0]["role"] == "system":
            raise Unusable("system_differs")
        prompt.insert(0, {"role": "system", "content": value})
        return True
    if name in ("input", "context") and prompt[-1]["role"] == "user":
        prompt[-1] = {**prompt[-1], "content": f"{prompt[-1]['content']}\n\n{value}"}
        return True
    return False


def _history(value: Any) -> list[Turn]:
    """Return the turns of LLaMA-Factory's history: a list of questions with their answers, or messages."""
    if isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value):
        return [
            {"role": role, "content": as_text(text)}
            for item in value
            for role, text in zip(("user", "assistant"), item, strict=True)
        ]
    return as_turns(value, "user")
