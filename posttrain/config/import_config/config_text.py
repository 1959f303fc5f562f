"""An imported config as YAML text with comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import yaml

from posttrain.config.equivalents.fates import Fate, Outcome
from posttrain.config.run_config import RunConfig

WIDTH = 110
_SECRET = re.compile("hub_token|api_key|secret|password|webhook|^env$")


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings as sections within sections, in the config's order."""
    result: dict[str, Any] = {}
    for name in sorted(settings, key=_place):
        *sections, leaf = name.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = settings[name]
    return result


def _place(setting: str) -> list[int]:
    """Where a setting stands in the config: the place of each part of its name among the fields of its section."""
    section: Any = RunConfig
    places = []
    for part in setting.split("."):
        places.append(list(section.model_fields).index(part))
        section = section.model_fields[part].annotation
    return places


def config_text(
    settings: Mapping[str, Any], comments: Mapping[str, Sequence[str]], header: Sequence[str], fates: Sequence[Fate]
) -> str:
    """A YAML file for `zenml pipeline run dpo_pipeline -c`.

    Args:
        settings: dotted.
        comments: dotted setting or section to what is said above it.
        header: what the file begins with.
        fates: those that were not carried over are listed at the top.
    """
    lines = [line for text in header for line in _comment(text, 0)]
    if lost := [fate for fate in fates if fate.outcome == "not carried over"]:
        lines.append("# Not carried over:")
        for fate in lost:
            lines += _item(f"{describe(fate)}: {fate.reason}", "# ")
    lines += ["", "parameters:", "  config:"]
    lines += _mapping(nested(settings), comments, "", 4)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def describe(fate: Fate) -> str:
    """A setting and its value, shortened; what may be a secret is not shown."""
    if _SECRET.search(fate.key):
        return fate.key
    value = yaml.safe_dump(fate.value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    value = value.removesuffix("\n...").strip()
    return f"{fate.key}: {value if len(value) <= 60 else value[:57] + '...'}"


def summary_lines(tool: str, fates: Sequence[Fate]) -> list[str]:
    """What became of the settings of a tool's file, for people: each one is in it."""
    groups = {outcome: [fate for fate in fates if fate.outcome == outcome] for outcome in get_args(Outcome)}
    counts = ", ".join(f"{len(found)} {outcome}" for outcome, found in groups.items())
    lines = [f"Read as a config of {tool}: {counts}."]
    for outcome, found in groups.items():
        if found:
            lines += ["", f"{outcome.capitalize()}:"]
        for fate in found:
            target = f" -> {', '.join(fate.settings)}" if fate.settings else ""
            lines += _item(f"{describe(fate)}{target}{': ' if fate.reason else ''}{fate.reason}", "  ")
    return lines


def _item(text: str, start: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{start}- ", subsequent_indent=f"{start}  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _mapping(values: Mapping[str, Any], comments: Mapping[str, Sequence[str]], prefix: str, indent: int) -> list[str]:
    lines = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        for text in comments.get(name, ()):
            lines += _comment(text, indent)
        if isinstance(value, dict) and not prefix.startswith("data.sources"):
            lines += [f"{' ' * indent}{key}:", *_mapping(value, comments, f"{name}.", indent + 2)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [
                f"{' ' * indent}{key}:",
                *textwrap.indent(_dump(value, flow=False), " " * (indent + 2)).splitlines(),
            ]
        else:
            lines.append(f"{' ' * indent}{key}: {_dump(value, flow=True)}")
    return lines


def _dump(value: Any, flow: bool) -> str:
    text = yaml.safe_dump(value, default_flow_style=flow, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, indent: int) -> list[str]:
    start = f"{' ' * indent}# "
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    )
