"""Nested settings as flat names and texts, as MLflow's parameters and comparisons show them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


MAX_VALUE_CHARS = 500  # of a parameter: the limit of servers before MLflow 2.8; later ones take more


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: `{"dpo": {"beta": 0.1}}` is `{"dpo.beta": "0.1"}`.

    A list of plain values stays one parameter, a list of mappings is numbered (`data.sources.0.path`). Text stays as
    it is, other values are written as JSON (`null`, `true`). Characters that MLflow forbids in names become `_`, and
    values are cut to 500 characters.
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
