"""Collects preference pairs: models answer prompts, a judge scores the answers, a rule makes pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from posttrain.config import CollectSection
from posttrain.errors import UserError
from posttrain.feedback.collecting.collected_pairs import (
    COLLECTED_SCHEMA,
    AnswerCounts,
    CollectedPreferences,
    CollectionReport,
    pair_row,
)
from posttrain.feedback.collecting.paid_work import PaidWork
from posttrain.feedback.collecting.pair_rule import ScoredAnswer, make_pairs
from posttrain.feedback.collecting.sampled_answers import AnsweringModel, SampledAnswer, sample_answers
from posttrain.feedback.collecting.scoring_judges import ScoringJudge


@dataclass(frozen=True)
class CollectionPrompts:
    """The prompts of a collection."""

    rows: list[dict[str, Any]]
    """Rows with `id`, `source`, `prompt` and perhaps `tools`."""
    max_prompt_length: int
    """Prompts with more tokens are left out."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows of the sources that are not used, by reason."""


@dataclass
class _Judged:
    """A prompt with its usable answers and their scores."""

    row: dict[str, Any]
    answers: list[SampledAnswer]
    scores: list[float] | None = None


def collect(
    models: Sequence[AnsweringModel], prompts: CollectionPrompts, section: CollectSection, work: PaidWork
) -> CollectedPreferences:
    """Return pairs of the models' answers to the prompts, with a report.

    Raises:
        UserError: the judge cannot be loaded, more prompts than `max_failed_share` could not be judged, or no pair was found.
    """
    judge = ScoringJudge(section.judge, work)
    drawn: dict[str, list[SampledAnswer]] = {row["id"]: [] for row in prompts.rows}
    left_out: Counter[str] = Counter()
    for model in models:
        found, missing = sample_answers(model, prompts.rows, section, prompts.max_prompt_length, work)
        left_out.update(missing)
        for row_id, answers in found.items():
            drawn[row_id] += answers
    judged = [_Judged(row, [a for a in drawn[row["id"]] if a.stopped and a.text]) for row in prompts.rows]
    asked = [one for one in judged if len(one.answers) > 1]
    scores = judge.score_all([(one.row["prompt"], [a.text for a in one.answers]) for one in asked])
    for one, found_scores in zip(asked, scores, strict=True):
        one.scores = found_scores
    _check_failures(scores, judge, section)
    rows, without = _pairs(judged, section)
    report = CollectionReport(
        n_prompts=len(judged),
        n_prompts_with_pairs=len(judged) - sum(without.values()),
        without_pairs=dict(without.most_common()),
        judge=section.judge.name,
        n_failures=sum(judge.failures.values()),
        failures=dict(judge.failures.most_common()),
        models={model.name: _counts(model.name, drawn, judged, rows) for model in models},
        prompts_dropped={**prompts.dropped, **left_out},
        **figures_of_pairs(rows),
    )
    if not rows:
        raise UserError(
            f"collect: none of {len(judged)} prompts gave a pair ({_listed(without)}): raise n_answers, temperature or "
            "max_new_tokens, or lower pairs.min_margin"
        )
    return CollectedPreferences(pa.Table.from_pylist(rows, COLLECTED_SCHEMA), report)


def figures_of_pairs(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a report that are computed from the pairs alone."""
    lengths = np.array([[len(row[name][-1]["content"]) for name in ("chosen", "rejected")] for row in rows])
    margins = [row["score_chosen"] - row["score_rejected"] for row in rows if row["score_chosen"] is not None]
    return {
        "n_pairs": len(rows),
        "mean_margin": float(np.mean(margins)) if margins else None,
        "chosen_chars": float(lengths[:, 0].mean()) if rows else None,
        "rejected_chars": float(lengths[:, 1].mean()) if rows else None,
        "longer_chosen": float((lengths[:, 0] > lengths[:, 1]).mean()) if rows else None,
    }


def _check_failures(scores: Sequence[list[float] | None], judge: ScoringJudge, section: CollectSection) -> None:
    n_failed = sum(found is None for found in scores)
    if scores and n_failed / len(scores) > section.max_failed_share:
        raise UserError(
            f"collect.judge: {section.judge.name} could not judge the answers to {n_failed} of {len(scores)} prompts "
            f"({_listed(judge.failures)}): correct the judge and run again, which asks only what is missing, or raise "
            "collect.max_failed_share"
        )


def _pairs(judged: Sequence[_Judged], section: CollectSection) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the rows of all pairs, and the number of prompts without one by reason."""
    rows, without = [], Counter[str]()
    for one in judged:
        if len(one.answers) > 1 and one.scores is None:
            without["judge_failed"] += 1
            continue
        scores = one.scores or []
        scored = [ScoredAnswer(a.text, score) for a, score in zip(one.answers, scores, strict=bool(scores))]
        pairs, why = make_pairs(scored, section.pairs)
        if why:
            without[why] += 1
        for i, j in pairs:
            chosen, rejected = one.answers[i], one.answers[j]
            origin = {
                **{f"chosen_{name}": getattr(chosen, name) for name in ("model", "digest", "seed")},
                **{f"rejected_{name}": getattr(rejected, name) for name in ("model", "digest", "seed")},
                "judge": section.judge.name,
                "collected_at": max(chosen.at, rejected.at),
                "prompt_source": one.row.get("source"),
            }
            rows.append(pair_row(one.row, (chosen.text, rejected.text), (scores[i], scores[j]), origin))
    return rows, without


def _counts(
    name: str, drawn: Mapping[str, list[SampledAnswer]], judged: Sequence[_Judged], rows: Sequence[dict[str, Any]]
) -> AnswerCounts:
    answers = [answer for answer in chain(*drawn.values()) if answer.model == name]
    scores = [s for one in judged for a, s in zip(one.answers, one.scores or [], strict=False) if a.model == name]
    return AnswerCounts(
        n_answers=len(answers),
        n_unfinished=sum(not answer.stopped for answer in answers),
        n_empty=sum(answer.stopped and not answer.text for answer in answers),
        n_chosen=sum(row["provenance"]["chosen_model"] == name for row in rows),
        mean_score=float(np.mean(scores)) if scores else None,
        mean_tokens=float(np.mean([answer.n_tokens for answer in answers])) if answers else None,
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.most_common()) or "none"
