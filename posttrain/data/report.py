"""What was read, what was dropped and why: nothing is lost without being counted and shown by example."""

from __future__ import annotations

import reprlib
from collections import Counter, defaultdict
from typing import Any

from pydantic import BaseModel, ConfigDict

from posttrain.data.checks import DELIBERATE, REASONS
from posttrain.errors import UserError


class SourceReport(BaseModel):
    """What one source turned out to be."""

    model_config = ConfigDict(frozen=True)

    path: str
    format: str
    revision: str | None
    """Commit on the Hub."""
    digest: str | None
    """sha256 over files."""
    objects: dict[str, str] = {}
    """URL of each object in S3 that was read: its version id, else its ETag."""
    n_rows: int
    """Rows of the source."""
    n_read: int
    """What is in them: a pair for most layouts, several or a part of one for some, or a reason why there is none."""


class DataReport(BaseModel):
    """What was read, kept and dropped; `n_read == n_kept + n_dropped`."""

    model_config = ConfigDict(frozen=True)

    n_rows: int
    """Rows of all sources; each was answered for by the pairs in it, by a reason, or by another row's pair that it is in."""
    n_read: int
    """Pairs in these rows, and rows without any; the same as `n_rows` for layouts of a pair a row."""
    n_kept: int
    n_dropped: int
    dropped: dict[str, int]
    """Rows by reason (`posttrain.data.checks.REASONS`), the commonest first."""
    examples: dict[str, list[str]]
    """A few dropped rows of each reason, shortened."""
    splits: dict[str, int]
    sources: list[SourceReport]
    ceiling: float | None = None
    """Best possible accuracy on the demo's test labels, some of which are wrong."""
    digest: str
    """Of the rows that were kept."""


class Tally:
    """The report in the making."""

    N_EXAMPLES = 3

    def __init__(self) -> None:
        self.n_rows = 0
        self.n_read = 0
        self.dropped: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)
        self.sources: list[SourceReport] = []

    def drop(self, reason: str, where: str, row: Any) -> None:
        """Counts a dropped row.

        Args:
            reason: one of `REASONS`.
            where: the row's file and line, or the like.
            row: what there is of it; shown shortened.
        """
        self.dropped[reason] += 1
        if len(self.examples[reason]) < self.N_EXAMPLES:
            self.examples[reason].append(f"{_printable(where)}: {_SHORT.repr(row)}")

    def check_share(self, max_drop_share: float) -> None:
        """Nothing, if few enough rows were dropped.

        Raises:
            UserError: a larger share than `max_drop_share` was.
        """
        n_dropped = sum(n for reason, n in self.dropped.items() if reason not in DELIBERATE)
        share = n_dropped / max(self.n_read, 1)
        if share > max_drop_share:
            raise UserError(
                f"{', '.join(source.path for source in self.sources)}: {n_dropped} of {self.n_read} rows ({share:.1%}) "
                f"cannot be used, more than data.max_drop_share {max_drop_share:g} allows:\n{self.summary()}\n"
                "Correct `format` or `columns`, or mend the rows; if rightly dropped, raise data.max_drop_share"
            )

    def summary(self) -> str:
        """The three commonest reasons, each with its first example, a line each."""
        return "\n".join(
            f"  {reason} {n}: {REASONS[reason]}; such as {self.examples[reason][0]}"
            for reason, n in self.dropped.most_common(3)
        )

    def report(self, n_rows: dict[str, int], digest: str, ceiling: float | None = None) -> DataReport:
        """The finished report.

        Args:
            n_rows: rows that were kept, by split.
            digest: of these rows.
            ceiling: of the demo's test pairs.
        """
        n_kept, n_dropped = sum(n_rows.values()), self.dropped.total()
        assert self.n_read == n_kept + n_dropped, "a row was lost without being counted"
        return DataReport(
            n_rows=self.n_rows,
            n_read=self.n_read,
            n_kept=n_kept,
            n_dropped=n_dropped,
            dropped=dict(self.dropped.most_common()),
            examples=dict(self.examples),
            splits=n_rows,
            sources=self.sources,
            ceiling=ceiling,
            digest=digest,
        )


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 4


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
