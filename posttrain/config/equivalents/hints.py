"""Hints for unknown config keys that are settings of another tool."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from posttrain.config.equivalents.entry import Equivalent, Tool, WithoutEquivalent
from posttrain.config.equivalents.fates import NotCarriedOver, NotNeeded, Reading
from posttrain.config.equivalents.tools import TOOLS, rule_of

_TRAINING = ("dpo", "sft", "sweep.grid")
"""Sections that have settings of `dpo`."""


def hint(section: str, key: str, fields: Collection[str], value: Any = None) -> str | None:
    """Return a hint for an unknown key, or None if no other tool has a setting of that name.

    Args:
        section: dotted path of the section that contains the key; empty at the top of the config.
        fields: the keys that this section allows.
        value: value of the key.
    """
    in_source = "train_split" in fields
    name = f"datasets[].{key}" if in_source else key
    entries = [(tool, entry) for tool in TOOLS.values() if (entry := tool.find(name)) is not None]
    for tool, entry in entries:
        if isinstance(entry, Equivalent):
            return _meant(tool, entry, section, fields, value)
    for tool, entry in entries:
        if isinstance(entry, WithoutEquivalent) and not in_source and section in ("", "model", "data", *_TRAINING):
            word = "has no equivalent here" if entry.needed else "is not needed here"
            return f"{tool.name}'s {key} {word}: {entry.reason}"
    return None


def _meant(tool: Tool, entry: Equivalent, section: str, fields: Collection[str], value: Any) -> str:
    group, _, leaf = entry.ours.rpartition(".")
    same_place = group == section or (group == "dpo" and section in _TRAINING) or group == "data.sources[]"
    prefix = f"{group}." if same_place and leaf in fields else f"{section}."
    meant = entry.ours.removeprefix(prefix)
    converted = _converted(tool, entry, value)
    shown = f"'{meant}'" if converted is None else f"'{meant}: {converted}'"
    difference = entry.difference.replace("{tool}", tool.name)
    if section and not group:
        shown += " at the top of the config"
    return f"did you mean {shown}?{' ' + difference if difference else ''}"


def _converted(tool: Tool, entry: Equivalent, value: Any) -> Any:
    """Return our value if it differs from the given one; None if it is the same or depends on other settings."""
    if value is None or isinstance(value, (dict, list)) or entry.ours.startswith("data.sources"):
        return None
    if not (entry.values or entry.rule):
        return None
    try:
        settings = rule_of(entry)(value, entry, Reading(tool, {entry.name: value}))
    except (NotCarriedOver, NotNeeded, TypeError, ValueError):
        return None
    found = settings.get(entry.ours)
    if found is None or found == value or isinstance(found, (list, dict)):
        return None
    return str(found).lower() if isinstance(found, bool) else found
