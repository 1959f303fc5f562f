"""Layout of PandaLM's test set: an instruction, two responses and the votes of several annotators.

Source: Wang et al. 2023, https://github.com/WeOpenML/PandaLM: votes are 1 or 2 for a response and 0 for a tie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values, answer, as_number, by_label, instruct

COLUMNS = REQUIRED_COLUMNS["pandalm"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> Pair:
    """Return the pair in a row by majority vote. Without a majority it is a tie."""
    votes = [as_number(row[name]) for name in row if name.startswith("annotator")]
    if not votes or not set(votes) <= {0, 1, 2}:
        raise Unusable("unknown_label")
    vote, n = Counter(votes).most_common(1)[0]
    if vote == 0 or 2 * n <= len(votes):
        raise Unusable("tie")
    prompt = instruct(row.get("instruction"), row.get("input"))
    return by_label(prompt, answer(row.get("response1")), answer(row.get("response2")), vote)
