"""The meaning of the labels of a source, decided by all its values before any row is used."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from posttrain.config import Source
from posttrain.errors import UserError

TIES = frozenset(
    ("tie", "tie (bothbad)", "both_bad", "bothbad", "both bad", "both", "neither", "equal", "same", "draw")
)
_NAMES = {
    **dict.fromkeys(("first", "a", "model_a", "response_a", "answer_a", "output_a", "left"), "first"),
    **dict.fromkeys(("second", "b", "model_b", "response_b", "answer_b", "output_b", "right"), "second"),
}
"""Names of answers that mean the same in every dataset."""
_END = re.compile(r"\d+$|(?<=_)[a-z]$")
"""The number or letter at the end of a column's name."""
MAX_SHOWN = 8


def label_text(value: Any) -> str | None:
    """Return a label as text, the same for 1, 1.0, `1` and `1.0`; None if it is no label."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = value.strip().lower()
        try:
            return _number_text(float(text)) if text else None
        except ValueError:
            return text
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number_text(value)
    return None


def _number_text(number: float) -> str | None:
    if not math.isfinite(number):
        return None
    return str(int(number)) if number == int(number) else repr(number)


class Labels:
    """The meaning of the labels of a source: `first`, `second` or `tie`."""

    def __init__(self, source: Source, columns: tuple[str, str, str], values: Iterable[Any]) -> None:
        """Decide the meaning.

        Args:
            source: its `labels`, if set, decide. Its `columns` give the names of the answers in the file.
            columns: our columns of the label, the first and the second answer.
            values: all labels of the source.

        Raises:
            UserError: the values have no meaning that is the same in every dataset, and `labels` is not set.
        """
        self._given = source.labels
        if self._given:
            return
        self._counts = Counter(text for text in map(label_text, values) if text is not None)
        first, second = (source.columns.get(name, name).lower() for name in columns[1:])
        found = _meaning(self._counts.keys() - TIES, first, second)
        if found is None:
            label = source.columns.get(columns[0], columns[0])
            shown = ", ".join(f"{text[:40]} ({n} rows)" for text, n in self._counts.most_common(MAX_SHOWN))
            if (more := len(self._counts) - MAX_SHOWN) > 0:
                shown += f" and {more} others"
            raise UserError(
                f"{source.path}: the label `{label}` has the values {shown}, which do not tell "
                f"whether {first} or {second} is the better answer: set `labels` of the source, e.g. `labels: "
                f"{{{_example(self._counts)}}}`, where `first` is {first} and `second` is {second}"
            )
        self._meaning = found

    def read(self, value: Any) -> str | None:
        """Return first, second or tie; None if the label is unknown."""
        text = label_text(value)
        if text is None:
            return None
        if not self._given:
            return "tie" if text in TIES else self._meaning.get(text)
        if text in self._given:
            return self._given[text]
        try:
            number = float(text)
        except ValueError:
            return None
        return self._given.get("positive" if number > 0 else "negative" if number < 0 else "zero")


def _meaning(texts: set[str], first: str, second: str) -> Mapping[str, str] | None:
    """Return the meaning of labels; None if it is not the same in every dataset.

    Labels may be the names of the two columns, the numbers or letters at the ends of these names, or common names of answers. If
    the names of the columns have no numbers, 1 and 2 mean the first and the second answer.
    """
    by_column = {first: "first", second: "second"}
    if texts <= by_column.keys():
        return by_column
    ends = [match.group() if (match := _END.search(name)) else "" for name in (first, second)]
    if "" not in ends and ends[0] != ends[1]:
        by_end = {end.lstrip("0") or "0": answer for end, answer in zip(ends, ("first", "second"), strict=True)}
        if texts <= by_end.keys():
            return by_end
        if ends == ["b", "a"]:
            return None
    if texts <= _NAMES.keys():
        return _NAMES
    return {"1": "first", "2": "second"} if texts == {"1", "2"} and not ends[0].isdigit() else None


def _example(counts: Counter[str]) -> str:
    texts = list(counts.keys() - TIES)
    numbers = [text for text in texts if re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", text)]
    if len(numbers) == len(texts) > 0 and any(text.startswith("-") for text in numbers):
        return "negative: first, positive: second, zero: tie"
    return ", ".join(f"{text}: {answer}" for text, answer in zip(sorted(texts)[:2], ("first", "second"), strict=False))
