"""Reference documentation of settings and data checks, generated from the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from posttrain.config import RunConfig
from posttrain.config.check_policies import REASONS, allowed_policies, reason_of_default

Schema = dict[str, Any]
TOP_LEVEL = "Run"
"""Heading of the settings that belong to no section."""
HEADER = "| setting | type | default | description |\n|---|---|---|---|"


def settings_table() -> str:
    """Return every setting as Markdown: one heading and one table for each section of the config."""
    schema = RunConfig.model_json_schema()
    return "\n\n".join(_sections(schema, schema["$defs"], ""))


def checks_table() -> str:
    """Return every data check as a Markdown table: its name, the possible policies, its meaning, the reason of the default."""
    rows = (
        f"| `{check}` | {', '.join([f'**{default}**', *others])} | {_cell(meaning)} | {reason_of_default(check)} |"
        for check, meaning in REASONS.items()
        for default, *others in [allowed_policies(check)]
    )
    return "\n".join(["| check | policies (default first) | meaning | why this default |", "|---|---|---|---|", *rows])


def _sections(section: Schema, sections: dict[str, Schema], prefix: str) -> Iterator[str]:
    """Yield the Markdown of a section, then that of the sections inside it."""
    rows, inner_sections = [], []
    for name, field in section["properties"].items():
        key, inner = prefix + name, _section(field, sections)
        if "$ref" not in field:
            rows.append(_row(key, field))
        # The fields of a source are listed once, under data.sources.
        if inner is not None and (inner is not sections["Source"] or name == "sources"):
            inner_sections.append((inner, f"{key}[]." if field.get("type") == "array" else f"{key}."))
    title = f"`{prefix.rstrip('.')}`" if prefix else TOP_LEVEL
    about = [section["description"].split("\n\n")[0]] if prefix and "description" in section else []
    table = ["\n".join([HEADER, *rows])] if rows else []
    yield "\n\n".join([f"## {title}", *about, *table])
    for inner, inner_prefix in inner_sections:
        yield from _sections(inner, sections, inner_prefix)


def _row(key: str, field: Schema) -> str:
    default = f"`{json.dumps(field['default'])}`" if "default" in field else "required"
    description = _cell(field.get("description", ""))
    return f"| `{key}` | {_cell(_takes(field))} | {_cell(default)} | {description} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _section(field: Schema, sections: dict[str, Schema]) -> Schema | None:
    """Return the section that a field holds, or None."""
    for place in (field, field.get("items", {}), *field.get("anyOf", ())):
        if "$ref" in place:
            return sections[place["$ref"].rsplit("/", 1)[-1]]
    return None


def _takes(field: Schema) -> str:
    """Return the allowed values of a field in words."""
    if "anyOf" in field:
        first, *others = (_takes(branch) for branch in field["anyOf"])
        return " or ".join([first, *("a list of them" if other == f"list of {first}" else other for other in others)])
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "$ref" in field:  # a section that may be left out
        return "like `data.sources[]`" if field["$ref"].endswith("/Source") else "mapping"
    if field["type"] == "array":
        return f"list of {'sources' if '$ref' in field['items'] else _takes(field['items'])}"
    names = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {field[bound]:.10g}" for bound, sign in names.items() if bound in field]
    words = {"string": "text", "integer": "integer", "object": "mapping", "boolean": "true or false"}
    return " ".join([words.get(field["type"], str(field["type"])), ", ".join(bounds)]).strip()
