"""Layout with chosen and rejected as texts with a common start, which is the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values
from posttrain.data.formats.turns import as_text

COLUMNS = REQUIRED_COLUMNS["implicit"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns have this layout and the texts of most rows have a common start."""
    return columns.issuperset(COLUMNS) and "prompt" not in columns and 2 * sum(map(_is_usable, rows)) > len(rows)


def parse(row: Values) -> Pair:
    """Return the pair in a row. Texts are split at white space, which belongs to neither part."""
    chosen, rejected = as_text(row.get("chosen")).strip(), as_text(row.get("rejected")).strip()
    if not chosen or not rejected:
        raise Unusable("empty")
    if chosen == rejected:
        raise Unusable("identical")
    n_shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
    n_prompt = max((i for i, character in enumerate(chosen[:n_shared]) if character.isspace()), default=0)
    if n_prompt == 0:
        raise Unusable("prompt_differs")
    return Pair(
        [{"role": "user", "content": chosen[:n_prompt].rstrip()}],
        [{"role": "assistant", "content": chosen[n_prompt:].lstrip()}],
        [{"role": "assistant", "content": rejected[n_prompt:].lstrip()}],
    )


def _is_usable(row: Values) -> bool:
    try:
        parse(row)
    except Unusable:
        return False
    return True
