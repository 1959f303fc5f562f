"""Two runs on the test pairs that both have: which pairs flipped, and how each model does on pairs of its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from posttrain.config import EvaluationSection
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.figures import Comparison
from posttrain.evaluation.intervals import Estimate, cluster_share
from posttrain.evaluation.statistics import CONVERSATION, compare, correct
from posttrain.reporting.html import first_line
from posttrain.reporting.run_report import RunReport

N_EXAMPLES = 5
"""Flipped pairs that are shown in each direction."""


@dataclass(frozen=True)
class SourceFlips:
    """Test pairs of one source."""

    n_shared: int
    n_gained: int
    """Pairs that the second run's model ranks better."""
    n_lost: int
    n_first: int
    """Pairs that only the first run has."""
    n_second: int
    rows: tuple[int, int]
    """Rows that are kept in all splits of the two runs."""


@dataclass(frozen=True)
class Flips:
    """The newest models of two runs on their test pairs, which are matched by id: the hash of prompt and answers."""

    contest: Comparison | None
    """On the pairs of both runs; None if there are none."""
    first_only: Estimate | None
    """Accuracy of the first model on the pairs that only its run has; None if there are none."""
    second_only: Estimate | None
    by_source: dict[str, SourceFlips]
    gained: list[str]
    """Beginnings of prompts whose pair only the second model ranks correctly."""
    lost: list[str]

    @property
    def same_pairs(self) -> bool:
        """Return whether both runs have the same test pairs."""
        return not any(found.n_first or found.n_second for found in self.by_source.values())


def flips_between(a: RunReport, a_pairs: pa.Table, b: RunReport, b_pairs: pa.Table) -> Flips:
    """Return the comparison of the newest models of two runs.

    Args:
        a, b: reports of the runs.
        a_pairs, b_pairs: rows of their evaluations.
    """
    first, second = _Scored(a, a_pairs), _Scored(b, b_pairs)
    shared = [row for row in first.halves if row in second.halves]
    section = EvaluationSection(confidence=b.figures.confidence, seed=b.figures.seed)
    change = {row: second.halves[row] - first.halves[row] for row in shared}
    contest = None
    if shared:
        newer, older = (np.array([scored.halves[row] for row in shared]) for scored in (second, first))
        contest = compare(newer, older, section, Clusters.of([second.conversation[row] for row in shared]))
    return Flips(
        contest=contest,
        first_only=first.accuracy_without(second, section.confidence),
        second_only=second.accuracy_without(first, section.confidence),
        by_source=_by_source(first, second, change, [_rows(report) for report in (a, b)]),
        gained=[second.shown(row) for row, by in change.items() if by > 0][:N_EXAMPLES],
        lost=[second.shown(row) for row, by in change.items() if by < 0][:N_EXAMPLES],
    )


class _Scored:
    """The test pairs of a run, as its newest model ranks them."""

    def __init__(self, report: RunReport, pairs: pa.Table) -> None:
        stage = report.figures.newest
        chosen, rejected = (pairs[f"{stage}_{side}_logps"].to_numpy() for side in ("chosen", "rejected"))
        ids = pairs["id"].to_pylist()
        self.halves: dict[str, float] = dict(zip(ids, correct(np.asarray(chosen - rejected)), strict=True))
        self.source: dict[str, str] = dict(zip(ids, pairs["source"].to_pylist(), strict=True))
        self._prompt: dict[str, str] = dict(zip(ids, pairs["prompt"].to_pylist(), strict=True))
        keys = pairs[CONVERSATION if CONVERSATION in pairs.column_names else "prompt"].to_pylist()
        self.conversation = dict(zip(ids, keys, strict=True))

    def accuracy_without(self, other: _Scored, confidence: float) -> Estimate | None:
        """Return the accuracy on the pairs that another run does not have; None if there are none."""
        own = [row for row in self.halves if row not in other.halves]
        if not own:
            return None
        clusters = Clusters.of([self.conversation[row] for row in own])
        return cluster_share(np.array([self.halves[row] for row in own]), clusters, confidence)

    def shown(self, row: str) -> str:
        """Return the id of a pair and the beginning of its prompt."""
        return f"{row} {first_line(self._prompt[row], 60)}"


def _by_source(
    first: _Scored, second: _Scored, change: dict[str, float], rows: list[dict[str, int]]
) -> dict[str, SourceFlips]:
    counts: dict[str, Counter[str]] = {}
    for scored, other, name in ((first, second, "first"), (second, first, "second")):
        for row, source in scored.source.items():
            if row not in other.source:
                counts.setdefault(source, Counter())[name] += 1
    for row, by in change.items():
        of_source = counts.setdefault(second.source[row], Counter())
        of_source["shared"] += 1
        of_source["gained"] += by > 0
        of_source["lost"] += by < 0
    names = sorted(counts.keys() | rows[0].keys() | rows[1].keys())
    found = {}
    for name in names:
        of_source = counts.get(name, Counter())
        found[name] = SourceFlips(
            n_shared=of_source["shared"],
            n_gained=of_source["gained"],
            n_lost=of_source["lost"],
            n_first=of_source["first"],
            n_second=of_source["second"],
            rows=(rows[0].get(name, 0), rows[1].get(name, 0)),
        )
    return found


def _rows(report: RunReport) -> dict[str, int]:
    return {source: found.n_rows for source, found in report.data.figures.by_source.items()}
