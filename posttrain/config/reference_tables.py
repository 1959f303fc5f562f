"""The tables of every setting and every check in the README, made from the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from posttrain.config import RunConfig
from posttrain.config.check_policies import REASONS, allowed_policies

Schema = dict[str, Any]


def settings_table() -> str:
    """Every setting as a row of a Markdown table: its key, what it takes, its default, what it does."""
    schema = RunConfig.model_json_schema()
    return "\n".join(
        ["| setting | takes | default | meaning |", "|---|---|---|---|", *_rows(schema, schema["$defs"], "")]
    )


def checks_table() -> str:
    """Every check as a row of a Markdown table: its name, what may be done about it, what it means."""
    rows = (
        f"| `{check}` | {', '.join([f'**{default}**', *others])} | {meaning} |"
        for check, meaning in REASONS.items()
        for default, *others in [allowed_policies(check)]
    )
    return "\n".join(["| check | policies (default first) | meaning |", "|---|---|---|", *rows])


def _rows(section: Schema, sections: dict[str, Schema], prefix: str) -> Iterator[str]:
    for name, field in section["properties"].items():
        key, inner = prefix + name, _section(field, sections)
        if "$ref" not in field:
            default = f"`{json.dumps(field['default'])}`" if "default" in field else "required"
            takes = _takes(field).replace("|", "\\|")
            yield f"| `{key}` | {takes} | {default} | {field.get('description', '')} |"
        # The fields of a source are listed once, under data.sources.
        if inner is not None and (inner is not sections["Source"] or name == "sources"):
            yield from _rows(inner, sections, f"{key}[]." if field.get("type") == "array" else f"{key}.")


def _section(field: Schema, sections: dict[str, Schema]) -> Schema | None:
    """The section that a field holds, if it holds one."""
    for place in (field, field.get("items", {}), *field.get("anyOf", ())):
        if "$ref" in place:
            return sections[place["$ref"].rsplit("/", 1)[-1]]
    return None


def _takes(field: Schema) -> str:
    """The values of a field in words."""
    if "anyOf" in field:
        first, *others = (_takes(branch) for branch in field["anyOf"])
        return " or ".join([first, *("a list of them" if other == f"list of {first}" else other for other in others)])
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "$ref" in field:  # a section that may be left out
        return "as `data.sources[]`" if field["$ref"].endswith("/Source") else "mapping"
    if field["type"] == "array":
        return f"list of {'sources' if '$ref' in field['items'] else _takes(field['items'])}"
    names = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {field[bound]:.10g}" for bound, sign in names.items() if bound in field]
    words = {"string": "text", "integer": "whole number", "object": "mapping", "boolean": "true or false"}
    return " ".join([words.get(field["type"], str(field["type"])), ", ".join(bounds)]).strip()
