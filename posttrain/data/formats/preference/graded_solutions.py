"""Layout of GSM8K's example solutions: a question, and one column per model with its solution and whether it is correct.

Source: Cobbe et al. 2021, https://github.com/openai/grade-school-math, `example_model_solutions.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Scored, Values, ranked_pairs
from posttrain.data.formats.turns import as_turns

COLUMNS = REQUIRED_COLUMNS["graded_solutions"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS) and any(_is_graded(value) for row in rows for value in row.values())


def parse(row: Values) -> list[Scored]:
    """Return all pairs of a correct solution (score 1) and a wrong one (score 0) in a row."""
    solutions = [value for value in row.values() if _is_graded(value)]
    if not all(isinstance(solution["is_correct"], bool) for solution in solutions):
        raise Unusable("unknown_label")
    answers = [(solution.get("solution"), float(solution["is_correct"])) for solution in solutions]
    return ranked_pairs(as_turns(row.get("question"), "user"), answers)


def _is_graded(value: Any) -> bool:
    return isinstance(value, Mapping) and "is_correct" in value
