"""Layout of Nectar: a prompt as a transcript, and answers with ranks, of which 1 is the best.

Source: Zhu et al. 2023, the card of berkeley-nest/Nectar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Scored, Values, as_number, ranked_pairs
from posttrain.data.formats.preference.pair_columns import as_prompt

COLUMNS = REQUIRED_COLUMNS["nectar"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS) and any(_is_ranked(item) for row in rows for item in _answers(row))


def parse(row: Values) -> list[Scored]:
    """Return all pairs of a row's answers with unequal ranks. The score is the negative rank."""
    answers = _answers(row)
    if not all(_is_ranked(item) for item in answers):
        raise Unusable("unknown_label")
    return ranked_pairs(
        as_prompt(row.get("prompt")), [(item.get("answer"), -as_number(item.get("rank"))) for item in answers]
    )


def _answers(row: Values) -> list[Mapping[str, object]]:
    answers = row.get("answers")
    return answers if isinstance(answers, list) else []


def _is_ranked(item: object) -> bool:
    return isinstance(item, Mapping) and "answer" in item and "rank" in item
