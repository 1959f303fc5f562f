"""Layout of distilabel's ratings: an instruction, its generations and their ratings. Higher is better.

Source: the task UltraFeedback of argilla-io/distilabel.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Scored, Values, as_number, ranked_pairs
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["distilabel"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> list[Scored]:
    """Return all pairs of a row's generations with unequal ratings. Generations without text or rating are skipped."""
    generations, ratings = row.get("generations"), row.get("ratings")
    if not isinstance(generations, list) or not isinstance(ratings, list) or len(generations) != len(ratings):
        raise Unusable("not_text")
    rated = [
        (text, as_number(rating))
        for text, rating in zip(generations, ratings, strict=True)
        if text is not None and rating is not None
    ]
    return ranked_pairs(as_turns(row.get("instruction"), "user"), rated)
