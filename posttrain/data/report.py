"""The data report: how many rows were read, kept and dropped, with the reasons and examples."""

from __future__ import annotations

import reprlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from posttrain.config.check_policies import DELIBERATE, REASONS, policy_of
from posttrain.data.profile import DataProfile
from posttrain.errors import UserError


class SourceReport(BaseModel):
    """Report on one source; `n_read` is `n_kept` plus the sum of `dropped`."""

    model_config = ConfigDict(frozen=True)

    path: str
    format: str
    revision: str | None
    """Commit on the Hub."""
    digest: str | None
    """sha256 of the files."""
    objects: dict[str, str] = {}
    """Version id, or ETag, by URL of each object read from S3."""
    n_rows: int
    """Number of rows of the source."""
    n_read: int
    """Number of pairs found in the rows, plus unusable rows. Some layouts have several pairs, or part of a pair, per row."""
    n_kept: int
    dropped: dict[str, int]
    """Number of dropped rows by reason, in descending order."""
    unread: dict[str, int] = {}
    """Number of rows in which a column, or a key of messages (`column[].key`), held something that nothing reads."""


class DataReport(BaseModel):
    """Number of rows read, kept and dropped; `n_read == n_kept + n_dropped`."""

    model_config = ConfigDict(frozen=True)

    n_rows: int
    """Number of rows of all sources. Each row has pairs, has a reason for having none, or is part of another row's pair."""
    n_read: int
    """Number of pairs in these rows, plus unusable rows; equal to `n_rows` for layouts with one pair per row."""
    n_kept: int
    n_dropped: int
    dropped: dict[str, int]
    """Number of dropped rows by reason (`posttrain.config.check_policies.REASONS`), in descending order."""
    fixed: dict[str, int]
    """Number of rows that were fixed, by check. Another check may still have dropped them."""
    flagged: dict[str, int]
    """Number of kept rows that fail a check with policy `keep`, by check. For `length_bias`: number of sources."""
    examples: dict[str, list[str]]
    """Shortened example rows by reason."""
    splits: dict[str, int]
    sources: list[SourceReport]
    figures: DataProfile
    """Statistics of the kept rows."""
    ceiling: float | None = None
    """Best possible accuracy on the test labels of the demo, some of which are wrong."""
    digest: str
    """Digest of the kept rows."""
    unmatched_exclusions: list[str] = []
    """Where the entries of data.exclude are that match no usable row of these sources."""


class Tally:
    """Counts outcomes of rows for the report."""

    N_EXAMPLES = 10

    def __init__(self, policies: Mapping[str, str]) -> None:
        """Start without rows.

        Args:
            policies: policy by check, for checks that do not use their default.
        """
        self._policies = policies
        self._rows: list[int] = []
        self._read: list[int] = []
        self._dropped: list[Counter[str]] = []
        self._sources: list[dict[str, Any]] = []
        self.fixed: Counter[str] = Counter()
        self.flagged: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)
        self.unmatched_exclusions: list[str] = []

    @property
    def n_read(self) -> int:
        """Number of pairs read from all sources, plus unusable rows."""
        return sum(self._read)

    @property
    def dropped(self) -> Counter[str]:
        """Number of dropped rows of all sources by reason."""
        return sum(self._dropped, Counter())

    @property
    def n_sources(self) -> int:
        """Number of sources so far."""
        return len(self._sources)

    def begin_source(self, **about: Any) -> None:
        """Start the next source, described by the fields of `SourceReport`."""
        self._sources.append(about)
        self._rows.append(0)
        self._read.append(0)
        self._dropped.append(Counter())

    def read_row(self) -> None:
        """Count a row of the current source."""
        self._rows[-1] += 1

    def read(self) -> None:
        """Count a pair, or an unusable row, of the current source."""
        self._read[-1] += 1

    def policy(self, reason: str) -> str:
        """Return the policy for rows that fail a check."""
        return policy_of(reason, self._policies)

    def drop(self, reason: str, where: str, row: Any, source: int = -1) -> None:
        """Count a dropped row.

        Args:
            reason: one of `REASONS`.
            where: location of the row, such as file and line.
            row: its content for the examples; shortened unless it is a string.
            source: index of its source; by default the current one.
        """
        self._dropped[source][reason] += 1
        self._show(reason, where, row)

    def flag(self, reason: str, where: str, row: Any) -> None:
        """Count a row that fails a check and is kept."""
        self.flagged[reason] += 1
        self._show(reason, where, row)

    def fix(self, reason: str, where: str, row: Any) -> None:
        """Count a row that was fixed.

        Args:
            reason: the check it failed.
            where: location of the row.
            row: its content before the fix.
        """
        self.fixed[reason] += 1
        self._show(reason, where, row)

    def wants_example(self, reason: str) -> bool:
        """Return whether another example of a reason would be kept."""
        return len(self.examples[reason]) < self.N_EXAMPLES

    def _show(self, reason: str, where: str, row: Any) -> None:
        if self.wants_example(reason):
            shown = row if isinstance(row, str) else _SHORT.repr(row)
            self.examples[reason].append(f"{printable(where)}: {printable(shown)}")

    def check_policies(self) -> None:
        """Check that no row fails a check with policy `fail`.

        Raises:
            UserError: a row does.
        """
        dropped = self.dropped
        if found := {reason: n for reason, n in dropped.items() if self.policy(reason) == "fail"}:
            raise UserError(
                f"{self._paths()}: rows fail a check whose policy is `fail`:\n{self.summary(Counter(found))}\n"
                "Correct the rows, or set another policy in data.checks"
            )

    def check_share(self, max_drop_share: float) -> None:
        """Check that the share of dropped rows is at most `max_drop_share`.

        Raises:
            UserError: it is larger.
        """
        n_dropped = sum(n for reason, n in self.dropped.items() if reason not in DELIBERATE)
        share = n_dropped / max(self.n_read, 1)
        if share > max_drop_share:
            raise UserError(
                f"{self._paths()}: {n_dropped} of {self.n_read} rows ({share:.1%}) cannot be used, more than data.max_drop_share "
                f"{max_drop_share:g} allows:\n{self.summary()}\n"
                "Correct `format`, `columns` or the rows. If the rows should be dropped, raise data.max_drop_share"
            )

    def check_length_bias(self, figures: DataProfile, limit: float) -> None:
        """Count the sources whose share of longer chosen responses has a confidence interval entirely above `limit`.

        Raises:
            UserError: there is such a source, and the policy of `length_bias` is `fail`.
        """
        for name, of_source in figures.by_source.items():
            share = of_source.longer_is_chosen
            if share and share.low > limit:
                self.flag(
                    "length_bias", name, f"the longer response is the chosen one in {share.value:.1%} of the pairs"
                )
        if self.flagged["length_bias"] and self.policy("length_bias") == "fail":
            raise UserError(
                f"data: {'; '.join(self.examples['length_bias'])}: more than data.max_length_bias {limit:g} allows, so the "
                "model may learn length instead of quality: balance the pairs, or set data.checks.length_bias to keep"
            )

    def _paths(self) -> str:
        return ", ".join(f"{source['path']} (layout {source['format']})" for source in self._sources)

    def summary(self, counts: Counter[str] | None = None) -> str:
        """Return the three most frequent reasons, one line each with an example."""
        return "\n".join(
            f"  {reason} {n}: {REASONS[reason]}; for example {self.examples[reason][0]}"
            for reason, n in (self.dropped if counts is None else counts).most_common(3)
        )

    def report(
        self, splits: dict[str, int], digest: str, figures: DataProfile, ceiling: float | None = None
    ) -> DataReport:
        """Return the finished report.

        Args:
            splits: number of kept rows by split.
            digest: digest of the kept rows.
            figures: statistics of the kept rows.
            ceiling: best possible accuracy on the demo's test pairs.
        """
        n_kept, dropped = sum(splits.values()), self.dropped
        assert self.n_read == n_kept + dropped.total(), "a row was lost without being counted"
        return DataReport(
            n_rows=sum(self._rows),
            n_read=self.n_read,
            n_kept=n_kept,
            n_dropped=dropped.total(),
            dropped=dict(dropped.most_common()),
            fixed=dict(self.fixed.most_common()),
            flagged={reason: n for reason, n in self.flagged.most_common() if n},
            examples=dict(self.examples),
            splits=splits,
            sources=[
                SourceReport(
                    **{**about, "unread": dict(about["unread"].most_common())},
                    n_rows=n_rows,
                    n_read=n,
                    n_kept=n - lost.total(),
                    dropped=dict(lost.most_common()),
                )
                for about, n_rows, n, lost in zip(self._sources, self._rows, self._read, self._dropped, strict=True)
            ],
            figures=figures,
            ceiling=ceiling,
            digest=digest,
            unmatched_exclusions=self.unmatched_exclusions,
        )


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 4


def printable(text: str) -> str:
    """Return text with control characters and lone surrogates escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
