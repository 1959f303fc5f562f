"""Turns pydantic's errors into messages for users."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel

from posttrain.config.equivalents.hints import hint


def merge(messages: list[str]) -> str:
    """Return one message that combines several about the same value."""
    first, *others = dict.fromkeys(messages)
    return ", or ".join([first, *(other.split(": must be ")[-1] for other in others)])


RENAMED = {"dpo.sft_checkpoint": "dpo.start"}
"""New names of settings, by the earlier one."""


def explain(item: Any, section: type[BaseModel]) -> tuple[str, str]:
    """Return the dotted key of a pydantic error and a message with the problem and its fix.

    Args:
        item: one of `ValidationError.errors()`.
        section: the model that was validated.
    """
    location = [part for part in item["loc"] if not _is_union_branch(part)]
    key = ".".join(str(part) for part in location) or "config"
    if item["type"] == "extra_forbidden":
        fields, name = _fields_at(location[:-1], section), str(location[-1])
        place = ".".join(str(part) for part in location[:-1] if not isinstance(part, int))
        if new := RENAMED.get(key):
            return key, f"unknown key (it was renamed: use {new})"
        return key, f"unknown key ({hint(place, name, fields, item['input']) or nearest(name, fields)})"
    if item["type"] == "missing":
        return key, "missing: set a value"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return key, message
    if item["input"] is None:
        return key, "has no value: set one, or remove the key to use the default"
    rule = message.replace("Input should be", "must be").replace("List should", "the list should")
    return key, f"{item['input']!r} is not allowed: {rule}"


def _is_union_branch(part: Any) -> bool:
    """Return whether a part of an error's location is the name of a union branch and not a key."""
    return isinstance(part, str) and (
        part.startswith(("constrained-", "list[", "literal[", "function-")) or part in ("int", "float", "str")
    )


def _fields_at(location: list[Any], section: type[BaseModel]) -> set[str]:
    """Return the keys that are allowed at a location in a section."""
    model: Any = section
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return set(model.model_fields)


def nearest(key: str, known: Iterable[str]) -> str:
    """Return a suggestion for an unknown key: the most similar known key, or all known keys."""
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
