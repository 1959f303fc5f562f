"""Layout of WebGPT's comparisons: a question, and two answers with scores from -1 to 1 that sum to 0.

Source: Nakano et al. 2021, the card of openai/webgpt_comparisons. An answer is preferred if its score is positive. The quotes that
each answer was written from are not part of the prompt, because they differ between the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.formats.layout import Scored, Values, as_number, ranked_pairs
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["webgpt"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> list[Scored]:
    """Return the pair in a row."""
    question = row.get("question")
    text = question.get("full_text") if isinstance(question, Mapping) else question
    answers = [(row.get(f"answer_{i}"), as_number(row.get(f"score_{i}"))) for i in (0, 1)]
    return ranked_pairs(as_turns(text, "user"), answers)
