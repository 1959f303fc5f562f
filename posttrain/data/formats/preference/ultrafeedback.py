"""Layout of UltraFeedback before binarization: an instruction and several rated answers.

Source: Cui et al. 2023, openbmb/UltraFeedback. An answer's score is its `fine-grained_score`, the mean of four ratings from 1
to 5. `overall_score`, which was wrong in the first release, is used only if that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Scored, Values, as_number, ranked_pairs
from posttrain.data.formats.turns import as_text, as_turns

COLUMNS = REQUIRED_COLUMNS["ultrafeedback"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> list[Scored]:
    """Return all pairs of a row's answers with unequal scores. Answers without text or score are skipped."""
    completions = row.get("completions")
    if not isinstance(completions, list):
        raise Unusable("not_text")
    answers = []
    for completion in completions:
        try:
            answers.append(_scored(completion))
        except Unusable:
            continue
    if completions and not answers:
        _scored(completions[0])
    return ranked_pairs(as_turns(row.get("instruction"), "user"), answers)


def _scored(completion: Any) -> tuple[str, float]:
    if not isinstance(completion, Mapping):
        raise Unusable("not_text")
    score = completion.get("fine-grained_score")
    return as_text(completion.get("response")), as_number(completion.get("overall_score") if score is None else score)
