"""What was read, what was dropped and why: nothing is lost without being counted and shown by example."""

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
    """What one source turned out to be; `n_read == n_kept` and the sum of `dropped`."""

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
    n_kept: int
    dropped: dict[str, int]
    """Rows by reason, the commonest first."""


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
    fixed: dict[str, int]
    """Rows by what was mended in them; another check may have dropped them all the same."""
    flagged: dict[str, int]
    """Rows by what was found in them and is, as the config says, no reason to drop them; sources for `length_bias`."""
    examples: dict[str, list[str]]
    """A few rows of each reason, shortened."""
    splits: dict[str, int]
    sources: list[SourceReport]
    figures: DataProfile
    """What the kept rows look like."""
    ceiling: float | None = None
    """Best possible accuracy on the demo's test labels, some of which are wrong."""
    digest: str
    """Of the rows that were kept."""


class Tally:
    """The report in the making."""

    N_EXAMPLES = 10

    def __init__(self, policies: Mapping[str, str]) -> None:
        """Begins with nothing.

        Args:
            policies: what is to be done about rows that fail a check, where it is not the default.
        """
        self._policies = policies
        self._rows: list[int] = []
        self._read: list[int] = []
        self._dropped: list[Counter[str]] = []
        self._sources: list[dict[str, Any]] = []
        self.fixed: Counter[str] = Counter()
        self.flagged: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)

    @property
    def n_read(self) -> int:
        """Rows of all sources."""
        return sum(self._read)

    @property
    def dropped(self) -> Counter[str]:
        """Dropped rows of all sources by reason."""
        return sum(self._dropped, Counter())

    @property
    def n_sources(self) -> int:
        """How many sources have been begun."""
        return len(self._sources)

    def begin_source(self, **about: Any) -> None:
        """From here on rows are of this source: `path`, `format`, `revision`, `digest`, `objects`."""
        self._sources.append(about)
        self._rows.append(0)
        self._read.append(0)
        self._dropped.append(Counter())

    def read_row(self) -> None:
        """Counts a row of the latest source."""
        self._rows[-1] += 1

    def read(self) -> None:
        """Counts what is in a row of the latest source: a pair, or a reason why there is none."""
        self._read[-1] += 1

    def policy(self, reason: str) -> str:
        """What is to be done about a row."""
        return policy_of(reason, self._policies)

    def drop(self, reason: str, where: str, row: Any, source: int = -1) -> None:
        """Counts a dropped row.

        Args:
            reason: one of `REASONS`.
            where: the row's file and line, or the like.
            row: what there is of it; shown shortened unless it is text.
            source: position of its source among those begun; the latest if not given.
        """
        self._dropped[source][reason] += 1
        self._show(reason, where, row)

    def flag(self, reason: str, where: str, row: Any) -> None:
        """Counts a row that is kept in spite of what was found."""
        self.flagged[reason] += 1
        self._show(reason, where, row)

    def fix(self, reason: str, where: str, row: Any) -> None:
        """Counts a row that was mended.

        Args:
            row: what it was before.
        """
        self.fixed[reason] += 1
        self._show(reason, where, row)

    def wants_example(self, reason: str) -> bool:
        """Whether one more row would be shown."""
        return len(self.examples[reason]) < self.N_EXAMPLES

    def _show(self, reason: str, where: str, row: Any) -> None:
        if self.wants_example(reason):
            shown = row if isinstance(row, str) else _SHORT.repr(row)
            self.examples[reason].append(f"{printable(where)}: {printable(shown)}")

    def check_policies(self) -> None:
        """Nothing, if no row was found that the config says to fail for.

        Raises:
            UserError: one was.
        """
        dropped = self.dropped
        if found := {reason: n for reason, n in dropped.items() if self.policy(reason) == "fail"}:
            raise UserError(
                f"{self._paths()}: rows were found that data.checks says to fail for:\n{self.summary(Counter(found))}\n"
                "Mend the rows, or choose another policy in data.checks"
            )

    def check_share(self, max_drop_share: float) -> None:
        """Nothing, if few enough rows were dropped.

        Raises:
            UserError: a larger share than `max_drop_share` was.
        """
        n_dropped = sum(n for reason, n in self.dropped.items() if reason not in DELIBERATE)
        share = n_dropped / max(self.n_read, 1)
        if share > max_drop_share:
            raise UserError(
                f"{self._paths()}: {n_dropped} of {self.n_read} rows ({share:.1%}) "
                f"cannot be used, more than data.max_drop_share {max_drop_share:g} allows:\n{self.summary()}\n"
                "Correct `format` or `columns`, or mend the rows; if rightly dropped, raise data.max_drop_share"
            )

    def check_length_bias(self, figures: DataProfile, limit: float) -> None:
        """Counts the sources in which preferring the longer response is right more often than `limit`, surely.

        Raises:
            UserError: there is one, and the config says to fail for it.
        """
        for name, of_source in figures.by_source.items():
            share = of_source.longer_is_chosen
            if share and share.low > limit:
                self.flag(
                    "length_bias", name, f"the longer response is the chosen one in {share.value:.1%} of the pairs"
                )
        if self.flagged["length_bias"] and self.policy("length_bias") == "fail":
            raise UserError(
                f"data: {'; '.join(self.examples['length_bias'])}: more than data.max_length_bias {limit:g} allows, so a "
                "model may learn length instead of quality: choose other pairs, or allow it in data.checks"
            )

    def _paths(self) -> str:
        return ", ".join(source["path"] for source in self._sources)

    def summary(self, counts: Counter[str] | None = None) -> str:
        """The three commonest reasons, each with its first example, a line each."""
        return "\n".join(
            f"  {reason} {n}: {REASONS[reason]}; such as {self.examples[reason][0]}"
            for reason, n in (self.dropped if counts is None else counts).most_common(3)
        )

    def report(
        self, splits: dict[str, int], digest: str, figures: DataProfile, ceiling: float | None = None
    ) -> DataReport:
        """The finished report.

        Args:
            splits: rows that were kept, by split.
            digest: of these rows.
            figures: of these rows.
            ceiling: of the demo's test pairs.
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
                    **about, n_rows=n_rows, n_read=n, n_kept=n - lost.total(), dropped=dict(lost.most_common())
                )
                for about, n_rows, n, lost in zip(self._sources, self._rows, self._read, self._dropped, strict=True)
            ],
            figures=figures,
            ceiling=ceiling,
            digest=digest,
        )


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 4


def printable(text: str) -> str:
    """Text whose control characters and lone surrogates are spelled out."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
