"""Flattens nested settings, for MLflow's parameters and for comparisons of runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_VALUE_CHARS = 500
"""Maximum length of a parameter's value in servers before MLflow 2.8; later ones allow more."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as MLflow parameters: `{"dpo": {"beta": 0.1}}` becomes `{"dpo.beta": "0.1"}`.

    A list of plain values stays one parameter; the items of a list of mappings are numbered (`data.sources.0.path`).
    Strings are unchanged, other values are written as JSON (`null`, `true`). Characters that MLflow does not allow in
    names become `_`, and values are truncated to `MAX_VALUE_CHARS`.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = prefix + re.sub(r"[^\w.\- /]", "_", str(key))
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        flat[name] = text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"
    return flat
