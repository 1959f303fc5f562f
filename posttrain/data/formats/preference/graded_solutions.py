"""A question, and a column for each model with its solution and whether it is right, as GSM8K's example solutions have.

Source: Cobbe et al. 2021, https://github.com/openai/grade-school-math, `example_model_solutions.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Scored, Values, as_turns, ranked_pairs

COLUMNS = REQUIRED_COLUMNS["graded_solutions"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Whether these columns and first rows have this layout."""
    return columns.issuperset(COLUMNS) and any(_is_graded(value) for row in rows for value in row.values())


def parse(row: Values) -> list[Scored]:
    """Each right solution of a row before each wrong one, scored 1 and 0."""
    solutions = [value for value in row.values() if _is_graded(value)]
    if not all(isinstance(solution["is_correct"], bool) for solution in solutions):
        raise Unusable("unknown_label")
    answers = [(solution.get("solution"), float(solution["is_correct"])) for solution in solutions]
    return ranked_pairs(as_turns(row.get("question"), "user"), answers)


def _is_graded(value: Any) -> bool:
    return isinstance(value, Mapping) and "is_correct" in value
