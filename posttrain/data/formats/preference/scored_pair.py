"""Layout of UltraFeedback binarized: chosen and rejected with scores, as text or conversations.

Source: the card of HuggingFaceH4/ultrafeedback_binarized. Some pairs have equal scores and are ties.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Scored, Values, as_number
from posttrain.data.formats.preference import conversational

COLUMNS = REQUIRED_COLUMNS["scored_pair"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Scored:
    """Return the pair in a row with its scores."""
    scored = Scored(conversational.parse(row), as_number(row.get("score_chosen")), as_number(row.get("score_rejected")))
    if scored.chosen_score == scored.rejected_score:
        raise Unusable("tie")
    return scored
