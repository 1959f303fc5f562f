"""Lines at the start of a chat template that pin its date and its variables, so that every copy of it renders the same text."""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from typing import Any

from jinja2 import TemplateError, meta

from posttrain.compat.chat_templates import compile_template
from posttrain.errors import UserError

CLOCK = "strftime_now"
"""The function with which templates print the date."""
DIRECTIVES = "YymdBbhAaeHIMSpjFDTRcxXZzfUWw"
"""Letters of the strftime directives that a pinned date knows."""
OWN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", CLOCK})
"""Variables of a template that belong to the conversation and to the tokenizer."""


def pin_template(template: str, kwargs: dict[str, Any], day: date) -> str:
    """Return a template that prints a fixed date, and whose variables have the given values unless a caller sets them.

    Raises:
        UserError: the template does not read one of the variables.
    """
    known = template_variables(template)
    for name in kwargs:
        if name not in known - OWN:
            others = ", ".join(sorted(known - OWN)) or "no variable"
            raise UserError(
                f"model.chat_template_kwargs: the chat template does not read {name!r}, so it would have no effect; it reads "
                f"{others}: correct the name, or remove it"
            )
    lines = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif -%}}"
        for name, value in kwargs.items()
    ]
    return "".join([*lines, _clock(day) if has_clock(template) else "", template])


def has_clock(template: str) -> bool:
    """Return whether a template prints the current date."""
    return bool(re.search(rf"\b{CLOCK}\s*\(", template)) and not is_pinned(template)


def is_pinned(template: str) -> bool:
    """Return whether a template prints a fixed date, because `pin_template` made it."""
    return f"macro {CLOCK}(format)" in template


def template_variables(template: str) -> set[str]:
    """Return the names of the variables and functions that a template takes from its caller.

    Raises:
        UserError: the template is not valid Jinja.
    """
    try:
        return set(meta.find_undeclared_variables(compile_template(template).environment.parse(template)))
    except TemplateError as error:
        raise UserError(f"model.chat_template: is not a valid Jinja template ({error}): correct it") from error


def join_named_templates(templates: dict[str, str]) -> str:
    """Return one template for a tokenizer's several named ones: `tool_use` for rows with tools, else `default`.

    transformers chooses in the same way. A single template needs no folder of its own in a checkpoint.

    Raises:
        UserError: there is no default.
    """
    if "default" not in templates:
        raise UserError(
            f"model.chat_template: the tokenizer has the templates {', '.join(sorted(templates))} and none is the default: name "
            "one of them"
        )
    if "tool_use" not in templates:
        return templates["default"]
    default, tool_use = (templates[name].removesuffix("\n") for name in ("default", "tool_use"))
    return f"{{% if tools is defined and tools is not none %}}{tool_use}{{% else %}}{default}{{% endif %}}"


def _clock(day: date) -> str:
    """Return a macro in place of the clock. It works wherever Jinja does, and for formats that are computed."""
    noon = datetime(day.year, day.month, day.day)
    steps = "".join(f" | replace('%{letter}', '{noon.strftime('%' + letter)}')" for letter in DIRECTIVES)
    short = "".join(f" | replace('%-{letter}', '{int(noon.strftime('%' + letter))}')" for letter in "dmHIMS")
    return f"{{%- macro {CLOCK}(format) -%}}{{{{ format{short}{steps} }}}}{{%- endmacro -%}}"


def _literal(value: Any) -> str:
    """Return a value of YAML as a Jinja expression."""
    text = json.dumps(value, ensure_ascii=False)
    # Outside of strings, JSON's null is Jinja's none.
    return re.sub(r'"(?:[^"\\]|\\.)*"|\bnull\b', lambda found: "none" if found[0] == "null" else found[0], text)
