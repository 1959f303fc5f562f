"""Layout of Fine-Grained RLHF: a question with passages, four predictions and their six pairwise comparisons.

Source: Wu et al. 2023, https://github.com/allenai/FineGrainedRLHF: `preference` compares (1, 2), (1, 3), (1, 4), (2, 3), (2, 4)
and (3, 4). 1 means the first is better, 2 the second, 0 a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from posttrain.config.layouts import REQUIRED_COLUMNS
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Pair, Values, answer, by_label
from posttrain.data.formats.turns import as_text
from posttrain.data.rows import Turn

COLUMNS = REQUIRED_COLUMNS["qa_feedback"]


def matches(columns: set[str], rows: Sequence[Values]) -> bool:
    """Return whether the columns and first rows have this layout."""
    return columns.issuperset(COLUMNS)


def parse(row: Values) -> list[Pair]:
    """Return the pairs of a row's predictions, without ties."""
    predictions = [answer(row[name]) for name in sorted(row) if name.startswith("prediction ")]
    compared, verdicts = list(combinations(predictions, 2)), row.get("preference")
    if not isinstance(verdicts, list) or len(verdicts) != len(compared):
        raise Unusable("unknown_label")
    prompt = _prompt(row)
    pairs = [
        by_label(prompt, first, second, verdict)
        for (first, second), verdict in zip(compared, verdicts, strict=True)
        if verdict != 0
    ]
    if not pairs:
        raise Unusable("tie")
    return pairs


def _prompt(row: Values) -> list[Turn]:
    """Return a prompt with the question, followed by the passages with their titles."""
    question, passages = as_text(row.get("question")), row.get("passages")
    if not isinstance(passages, list) or not all(isinstance(passage, list) and passage for passage in passages):
        raise Unusable("not_text")
    texts = [f"{as_text(title)}\n{' '.join(map(as_text, sentences))}" for title, *sentences in passages]
    return [{"role": "user", "content": "\n\n".join([question, *texts])}]
