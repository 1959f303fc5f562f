"""Layout of the Stanford Human Preferences dataset: two comments on a Reddit post, with scores.

Source: Ethayarajh et al. 2022, the card of stanfordnlp/SHP. `labels` is 1 if A is preferred and 0 if B is. The card recommends
`min_score_ratio: 2` and `max_pairs_per_prompt: 5`.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Scored, Values, answer, as_number
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["shp"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Pair | Scored:
    """Return the pair in a row, with its scores if the row has them."""
    label = as_number(row.get("labels"))
    if label not in (0, 1):
        raise Unusable("unknown_label")
    better, worse = ("A", "B") if label == 1 else ("B", "A")
    pair = Pair(
        as_turns(row.get("history"), "user"),
        answer(row.get(f"human_ref_{better}")),
        answer(row.get(f"human_ref_{worse}")),
    )
    if "score_A" not in row:
        return pair
    return Scored(pair, as_number(row.get(f"score_{better}")), as_number(row.get(f"score_{worse}")))
