"""Chosen and rejected with a score each, as in UltraFeedback binarized: text or conversations.

Source: the card of HuggingFaceH4/ultrafeedback_binarized. Pairs of equal scores, which it has, are ties.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Scored, Values, as_number
from posttrain.data.formats.preference import conversational

COLUMNS = REQUIRED_COLUMNS["scored_pair"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Whether these columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Scored:
    """The pair in a row, with its scores."""
    scored = Scored(conversational.parse(row), as_number(row.get("score_chosen")), as_number(row.get("score_rejected")))
    if scored.chosen_score == scored.rejected_score:
        raise Unusable("tie")
    return scored
