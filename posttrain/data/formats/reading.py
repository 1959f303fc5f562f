"""Parses rows into pairs or examples, with a result for every row, and applies the limits of the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

from posttrain.config import Source
from posttrain.data.checks import Unusable
from posttrain.data.formats.layout import Found, GroupLayout, Layout, Parsed, RowLayout, Scored, Values
from posttrain.data.splits import prompt_key
from posttrain.errors import UserError

Row = TypeVar("Row")


def read_rows(
    source: Source, layout: Layout[Parsed], rows: Iterable[tuple[Row, Values | None]]
) -> Iterator[tuple[Row, list[Parsed | Unusable]]]:
    """Yield each row once with its results: usually one pair or example, or the reason why there is none.

    A row can have several results. It has none only if it is part of pairs that belong to another row.

    Args:
        source: the source with the limits.
        layout: the layout of the rows.
        rows: a label of any type and the values of each row, or None if they cannot be parsed.
    """
    limits = _Limits(source)
    group = getattr(layout, "group", None)
    waiting: list[tuple[Row, Values]] = []
    for row, values in rows:
        try:
            wanted = _wanted(source, values)
            if group is not None:
                waiting.append((row, wanted))
                continue
            found = cast(RowLayout[Parsed], layout).parse(wanted)
        except Unusable as unusable:
            yield row, [unusable]
        else:
            yield row, limits.keep(found if isinstance(found, list) else [found])
    if group is not None:
        try:
            outcomes = cast(GroupLayout[Parsed], layout).group([values for _, values in waiting])
        except UserError as error:
            raise UserError(f"{source.path}: {error}") from error
        for (row, _), outcome in zip(waiting, outcomes, strict=True):
            yield row, [outcome] if isinstance(outcome, Unusable) else limits.keep(outcome)


def language(row: Values) -> object:
    """Return the language that a row states; None if it states none."""
    first = row.get("prompt")
    return row.get("lang") or row.get("language") or (first.get("lang") if isinstance(first, Mapping) else None)


def _wanted(source: Source, values: Values | None) -> Values:
    if values is None:
        raise Unusable("unparsable")
    if source.languages is not None and language(values) not in source.languages:
        raise Unusable("other_language")
    return values


class _Limits:
    """Applies the limits of a source to its pairs."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._n_pairs = Counter[bytes]()

    def keep(self, found: Iterable[Found]) -> list[Any]:
        """Return each pair or example, or the reason for which it is left out."""
        return [self._keep(item) for item in found]

    def _keep(self, item: Found) -> Any:
        parsed = item.pair if isinstance(item, Scored) else item
        if isinstance(item, Scored) and item.chosen_score < item.rejected_score:
            return Unusable("score_against_choice", parsed)
        if not self._is_far(item):
            return Unusable("too_close")
        if (limit := self._source.max_pairs_per_prompt) is not None:
            try:
                key = prompt_key(parsed.prompt)
            except UnicodeEncodeError:  # reported later by the checks
                return parsed
            if self._n_pairs[key] == limit:
                return Unusable("over_max_pairs")
            self._n_pairs[key] += 1
        return parsed

    def _is_far(self, item: Found) -> bool:
        ratio, difference = self._source.min_score_ratio, self._source.min_score_difference
        if ratio is None and difference is None:
            return True
        if not isinstance(item, Scored):
            name = "min_score_ratio" if difference is None else "min_score_difference"
            raise UserError(f"{self._source.path}: {name} is set, but the rows have no scores: remove the setting")
        if ratio is not None and min(item.chosen_score, item.rejected_score) < 0:
            raise UserError(
                f"{self._source.path}: min_score_ratio is set, but a score is negative (e.g. a rank), "
                "so the ratio has no meaning: use min_score_difference"
            )
        has_ratio = ratio is None or item.chosen_score >= ratio * item.rejected_score
        return has_ratio and (difference is None or item.chosen_score - item.rejected_score >= difference)
