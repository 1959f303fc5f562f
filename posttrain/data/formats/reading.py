"""From rows to pairs or examples: whatever the layout, each row is answered for, and the source's limits are kept."""

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
    """Each row, once, and what it holds: usually one pair or example, or the reason why there is none.

    A row may hold several pairs. It holds nothing at all only where it is a part of pairs that stand with another row.

    Args:
        source: whose limits are kept.
        layout: of the rows.
        rows: anything, with the values of its row; None where they cannot be read.
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
        outcomes = cast(GroupLayout[Parsed], layout).group([values for _, values in waiting])
        for (row, _), outcome in zip(waiting, outcomes, strict=True):
            yield row, [outcome] if isinstance(outcome, Unusable) else limits.keep(outcome)


def language(row: Values) -> object:
    """The language that a row says it is in; None where it says nothing."""
    first = row.get("prompt")
    return row.get("lang") or row.get("language") or (first.get("lang") if isinstance(first, Mapping) else None)


def _wanted(source: Source, values: Values | None) -> Values:
    if values is None:
        raise Unusable("unparsable")
    if source.languages is not None and language(values) not in source.languages:
        raise Unusable("other_language")
    return values


class _Limits:
    """What a source's settings let through of the pairs that a layout finds."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._n_pairs = Counter[bytes]()

    def keep(self, found: Iterable[Found]) -> list[Any]:
        """The pairs or examples, each in its place, or why it is left out."""
        return [self._keep(item) for item in found]

    def _keep(self, item: Found) -> Any:
        parsed = item.pair if isinstance(item, Scored) else item
        if not self._is_far(item):
            return Unusable("too_close")
        if (limit := self._source.max_pairs_per_prompt) is not None:
            try:
                key = prompt_key(parsed.prompt)
            except UnicodeEncodeError:  # which the checks will find
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
            raise UserError(
                f"{self._source.path}: {name} is set, but its rows have no scores, so it would do nothing: drop it"
            )
        if ratio is not None and min(item.chosen_score, item.rejected_score) < 0:
            raise UserError(
                f"{self._source.path}: min_score_ratio is set, but a score is below 0, as ranks are here, which have no "
                "ratio: set min_score_difference"
            )
        has_ratio = ratio is None or item.chosen_score >= ratio * item.rejected_score
        return has_ratio and (difference is None or item.chosen_score - item.rejected_score >= difference)
