"""Computes the figures of a verifier from its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.optimize import minimize
from scipy.special import expit

from posttrain.config import EvaluationSection
from posttrain.evaluation.calibration import calibrate
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.figures import WrongPair
from posttrain.evaluation.intervals import cluster_share, rank_correlation
from posttrain.evaluation.length_control import STRATA_SIGNS
from posttrain.evaluation.statistics import SHOWN_CHARS, Columns, PairSample, compare, correct, longer_by, slices_of
from posttrain.evaluation.verification.auc import clustered_auc
from posttrain.evaluation.verification.best_of_n import AnsweredQuestion, best_of_n
from posttrain.evaluation.verification.verifier_figures import AbsoluteFigures, LengthBias, VerifierFigures

MIN_FITTED = 40
"""Least number of validation answers for the fit of probabilities."""


@dataclass(frozen=True)
class GradedAnswers:
    """Different answers, and whether each is right."""

    scores: np.ndarray
    is_right: np.ndarray
    questions: list[str]
    n_ambiguous: int

    @classmethod
    def of(cls, column: Columns, stage: str = "verifier") -> GradedAnswers:
        """Return the answers of pairs: chosen ones are right, rejected ones are wrong, and those that are both are left out."""
        found: dict[tuple[str, str], tuple[float, str]] = {}
        verdicts: dict[tuple[str, str], set[bool]] = {}
        for side, is_right in (("chosen", True), ("rejected", False)):
            for prompt, answer, score, question in zip(
                column["prompt"], column[side], column[f"{stage}_{side}_score"], column["conversation"], strict=True
            ):
                found[prompt, answer] = float(score), question
                verdicts.setdefault((prompt, answer), set()).add(is_right)
        clear = [key for key, given in verdicts.items() if len(given) == 1]
        return cls(
            np.array([found[key][0] for key in clear]),
            np.array([True in verdicts[key] for key in clear]),
            [found[key][1] for key in clear],
            len(verdicts) - len(clear),
        )


@dataclass(frozen=True)
class ScoredSets:
    """What a verifier is judged by."""

    test: pa.Table
    """One row per test pair, as `VerifierEvaluation.pairs`."""
    validation: GradedAnswers | None
    """Answers that probabilities are fitted to."""
    sampled: Sequence[AnsweredQuestion]
    """Answers to test prompts by the model that the verifier starts from."""
    cut: dict[str, int]


def summarise_verifier(scored: ScoredSets, section: EvaluationSection, digests: dict[str, str]) -> VerifierFigures:
    """Return all figures of a verifier.

    Args:
        digests: of the data and the models; see `VerifierFigures.digests`.
    """
    sample = PairSample.of(scored.test, section)
    column, clusters = sample.column, sample.clusters
    margins = {
        stage: column[f"{stage}_chosen_score"].astype(float) - column[f"{stage}_rejected_score"].astype(float)
        for stage in ("verifier", "champion")
        if f"{stage}_chosen_score" in column
    }
    right = {stage: correct(margin) for stage, margin in margins.items()}
    by_length = correct(longer_by(column))
    baseline = by_length if by_length.mean() >= 0.5 else 1 - by_length
    right["length"] = baseline
    opponent = "champion" if "champion" in right else "length"
    compared = compare(right["verifier"], right[opponent], section, clusters)
    truth = column["true_margin"].astype(float)
    known = np.isfinite(truth) & (truth != 0)
    answers = GradedAnswers.of(column)
    agreement = correct(margins["verifier"][known] * np.sign(truth[known]))
    return VerifierFigures(
        n_pairs=scored.test.num_rows,
        n_prompts=clusters.n,
        accuracy=sample.share(right["verifier"]),
        champion_accuracy=sample.share(right["champion"]) if "champion" in right else None,
        true_agreement=sample.where(known).share(agreement) if known.any() else None,
        opponent=opponent,
        gain=compared.gain,
        n_gained=compared.n_gained,
        n_lost=compared.n_lost,
        calibration=calibrate(margins["verifier"], section, clusters),
        absolute=_absolute(answers, scored.validation, section),
        length=_length_bias(sample, margins["verifier"], baseline),
        # Length alone is right on one side and wrong on the other, so slices by length say nothing against it.
        slices=[
            s for s in slices_of(sample, right, [("verifier", opponent)]) if (s.by, opponent) != ("length", "length")
        ],
        best_of_held_out=best_of_n(_questions(answers), section),
        best_of_sampled=best_of_n(scored.sampled, section),
        wrong=_wrong_pairs(scored.test, margins["verifier"], section),
        cut=scored.cut,
        confidence=section.confidence,
        seed=section.seed,
        digests=digests | ({} if opponent == "champion" else {"length": "length"}),
    )


def _absolute(answers: GradedAnswers, validation: GradedAnswers | None, section: EvaluationSection) -> AbsoluteFigures:
    clusters = Clusters.of(answers.questions)
    auc = clustered_auc(answers.scores, answers.is_right, clusters, section.confidence)
    assert auc is not None  # every pair has a right and a wrong answer
    scale, offset, n_fitted = fit_probability(validation)
    log_odds = scale * answers.scores + offset
    towards_truth = np.where(answers.is_right, log_odds, -log_odds)
    share = float(answers.is_right.mean())
    return AbsoluteFigures(
        n_answers=len(answers.scores),
        n_ambiguous=answers.n_ambiguous,
        auc=auc,
        accuracy=cluster_share(correct(towards_truth), clusters, section.confidence),
        larger_class=max(share, 1 - share),
        calibration=calibrate(towards_truth, section, clusters),
        scale=scale,
        offset=offset,
        n_fitted=n_fitted,
    )


def fit_probability(answers: GradedAnswers | None) -> tuple[float, float, int]:
    """Return scale and offset of the log-odds that an answer is right, and the number of answers that they were fitted to.

    Source: Platt 1999, with his targets, which keep the fit finite if scores tell right from wrong perfectly.
    """
    if answers is None or len(answers.scores) < MIN_FITTED or len(set(answers.is_right.tolist())) < 2:
        return 1.0, 0.0, 0
    n_right, n_wrong = int(answers.is_right.sum()), int((~answers.is_right).sum())
    target = np.where(answers.is_right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))

    def loss(parameters: np.ndarray) -> float:
        log_odds = parameters[0] * answers.scores + parameters[1]
        return float((np.logaddexp(0, log_odds) - target * log_odds).mean())

    def slope(parameters: np.ndarray) -> np.ndarray:
        excess = expit(parameters[0] * answers.scores + parameters[1]) - target
        return np.array([(excess * answers.scores).mean(), excess.mean()])

    scale, offset = minimize(loss, np.array([1.0, 0.0]), jac=slope, method="BFGS").x.tolist()
    return scale, offset, len(answers.scores)


def _questions(answers: GradedAnswers) -> list[AnsweredQuestion]:
    clusters = Clusters.of(answers.questions)
    order = np.argsort(clusters.index, kind="stable")
    ends = np.cumsum(clusters.sizes.astype(int))[:-1]
    scores, right = (np.split(values[order], ends) for values in (answers.scores, answers.is_right.astype(float)))
    return [AnsweredQuestion(*both) for both in zip(scores, right, strict=True)]


def _length_bias(sample: PairSample, margins: np.ndarray, baseline: np.ndarray) -> LengthBias:
    longer, section, clusters = longer_by(sample.column), sample.section, sample.clusters
    inside = {name: np.sign(longer) == sign for sign, name in STRATA_SIGNS.items()}
    return LengthBias(
        prefer_longer=sample.share(correct(longer)),
        baseline=sample.share(baseline),
        correlation=rank_correlation(margins, longer, section, clusters),
        accuracy={
            name: sample.where(rows).share(correct(margins[rows])) for name, rows in inside.items() if rows.any()
        },
        n_pairs={name: int(rows.sum()) for name, rows in inside.items()},
    )


def _wrong_pairs(pairs: pa.Table, margins: np.ndarray, section: EvaluationSection) -> list[WrongPair]:
    """Return the pairs with the lowest margins below 0; equal margins are sorted by id."""
    ids = np.array(pairs["id"].to_pylist(), dtype=str)
    furthest = np.lexsort((ids, margins))[: section.n_wrong_pairs]
    found = []
    for i in furthest[margins[furthest] < 0].tolist():
        row = pairs.slice(i, 1).to_pylist()[0]
        found.append(
            WrongPair(
                id=row["id"],
                source=row["source"],
                margin_nats=float(margins[i]),
                confidence=float(expit(-margins[i])),
                true_margin=row["true_margin"],
                prompt=row["prompt"][-SHOWN_CHARS:],
                chosen=row["chosen"][:SHOWN_CHARS],
                rejected=row["rejected"][:SHOWN_CHARS],
            )
        )
    return found
