"""Computes the metrics of an evaluation from its rows: overall, by slice and by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.special import expit

from posttrain.config import EvaluationSection
from posttrain.evaluation.calibration import calibrate
from posttrain.evaluation.clustered.gains import paired_gain
from posttrain.evaluation.clusters import Clusters
from posttrain.evaluation.figures import (
    STAGES,
    Comparison,
    Histogram,
    Length,
    SetFigures,
    Slice,
    StageFigures,
    Stratum,
    WrongPair,
)
from posttrain.evaluation.intervals import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    cluster_share,
    exponential,
    rank_correlation,
)
from posttrain.evaluation.labels import STRATA
from posttrain.evaluation.length_control import STRATA_SIGNS, Scores, per_token_margins

N_BINS = 40
MAX_TURNS_TOLD_APART = 8
SHORTEST_PROMPTS = 32
"""Upper bound of the first bucket of prompt lengths, in tokens. Each following bucket doubles it."""
SHOWN_CHARS = 600
"""Maximum number of characters of each text of a wrong pair. The rows have the whole texts."""

CONVERSATION = "conversation"
"""Column with the key of each pair's conversation. Rows without it, of earlier versions, are grouped by prompt."""

Columns = dict[str, np.ndarray]


def summarise(
    pairs: pa.Table, section: EvaluationSection, cut: dict[str, int], beta: float | None = None
) -> SetFigures:
    """Return all metrics of a set of pairs.

    Args:
        pairs: rows as in `posttrain.evaluation.scoring.Evaluation.pairs`.
        section: confidence level, bootstrap and seed.
        cut: number of pairs that were truncated or left out, by reason.
        beta: beta of DPO's loss; beta x implicit margin is the log-odds of the chosen response. None without DPO.
    """
    sample = PairSample.of(pairs, section)
    column, clusters = sample.column, sample.clusters
    present = [stage for stage in STAGES if f"{stage}_chosen_logps" in column]
    margins = {stage: _difference(column, f"{stage}_chosen_logps", f"{stage}_rejected_logps") for stage in present}
    right = {stage: correct(margin) for stage, margin in margins.items()}
    implicit = margins["dpo"] - margins["sft"] if {"dpo", "sft"} <= margins.keys() else None
    trained = [stage for stage in present if stage != "champion"]
    contests = [(newer, older) for older, newer in pairwise(trained)]
    if "champion" in present:
        contests.append((trained[-1], "champion"))
    stages: dict[str, StageFigures | None] = dict.fromkeys(STAGES)
    edges = _edges(list(margins.values()))
    for stage in present:
        own = _Margins(margins[stage], implicit if stage == "dpo" else None, edges)
        stages[stage] = _stage(stage, sample, own)
    return SetFigures(
        n_pairs=pairs.num_rows,
        n_prompts=clusters.n,
        stages=stages,
        comparisons={
            f"{newer}_vs_{older}": compare(right[newer], right[older], section, clusters) for newer, older in contests
        },
        perplexity_ratios={
            f"{newer}_vs_{older}": perplexity_ratio(column, newer, older, section, clusters)
            for older, newer in pairwise(trained)
        },
        slices=list(slices_of(sample, right, contests)),
        length=_length(sample, margins, implicit, contests),
        calibration=None if implicit is None or beta is None else calibrate(beta * implicit, section, clusters),
        wrong=_wrong(
            pairs, margins[trained[-1]] if implicit is None else implicit, implicit is not None, beta, section
        ),
        cut=cut,
    )


def correct(margins: np.ndarray) -> np.ndarray:
    """Return 1 for each positive margin, 0 for each negative one and one half for a tie."""
    halves: np.ndarray = (np.sign(margins) + 1) / 2
    return halves


def compare(
    newer: np.ndarray, older: np.ndarray, section: EvaluationSection, clusters: Clusters | None = None
) -> Comparison:
    """Return the difference of two models on the same pairs.

    Args:
        newer, older: 1, 0 or one half for each pair, as `correct` returns.
        clusters: prompts of the pairs; None if each pair has its own.
    """
    difference = newer - older
    return Comparison(
        gain=paired_gain(difference, clusters or Clusters.single(len(difference)), section.confidence),
        n_gained=int((difference > 0).sum()),
        n_lost=int((difference < 0).sum()),
    )


def perplexity(
    logps: np.ndarray, n_tokens: np.ndarray, section: EvaluationSection, clusters: Clusters | None = None
) -> Estimate:
    """Return the perplexity per token. The bootstrap resamples whole prompts.

    Args:
        logps: log-probability of each response, summed over its tokens, in nats.
        n_tokens: number of tokens of each response.
        clusters: prompts of the responses; None if each has its own.
    """
    return exponential(bootstrap_ratio(-logps, n_tokens, section, clusters))


def perplexity_ratio(
    column: Columns, newer: str, older: str, section: EvaluationSection, clusters: Clusters | None = None
) -> Estimate:
    """Return the perplexity of one model on the chosen responses, divided by that of another on the same tokens."""
    lost = _difference(column, f"{older}_chosen_logps", f"{newer}_chosen_logps")
    return exponential(bootstrap_ratio(lost, column["n_chosen_tokens"].astype(float), section, clusters))


class _Margins(NamedTuple):
    """Margins of one model on every pair."""

    likelihood: np.ndarray
    implicit: np.ndarray | None
    """None unless the model was trained with DPO from an SFT policy that was scored too."""
    edges: np.ndarray
    """Of the histogram of `likelihood`, the same for every model."""


class PairSample(NamedTuple):
    """The rows of a set, and how they are grouped by prompt."""

    column: Columns
    clusters: Clusters
    section: EvaluationSection

    @classmethod
    def of(cls, pairs: pa.Table, section: EvaluationSection) -> PairSample:
        column = {name: pairs[name].to_numpy(zero_copy_only=False) for name in pairs.column_names}
        return cls(column, Clusters.of(column[CONVERSATION if CONVERSATION in column else "prompt"]), section)

    def where(self, inside: np.ndarray) -> PairSample:
        return PairSample({}, self.clusters.where(inside), self.section)

    def share(self, halves: np.ndarray) -> Estimate:
        """Return the share of correct pairs, from the values that `correct` returns."""
        return cluster_share(halves, self.clusters, self.section.confidence)

    def mean(self, values: np.ndarray) -> Estimate:
        return bootstrap_mean(values, self.section, self.clusters)


def _stage(stage: str, sample: PairSample, own: _Margins) -> StageFigures:
    column = sample.column
    margins, implicit, edges = own
    scores = _scores(column, stage)
    truth = column["true_margin"].astype(float)
    known = np.isfinite(truth) & (truth != 0)
    has_kl = stage == "dpo" and "kl_nats_per_token" in column
    kl = column["kl_nats_per_token"].astype(float) if has_kl else np.full(len(margins), np.nan)
    measured = np.isfinite(kl)
    return StageFigures(
        likelihood_accuracy=sample.share(correct(margins)),
        normalised_accuracy=sample.share(correct(per_token_margins(scores))),
        implicit_accuracy=None if implicit is None else sample.share(correct(implicit)),
        true_agreement=sample.where(known).share(correct(margins[known] * np.sign(truth[known])))
        if known.any()
        else None,
        likelihood_margin_nats=sample.mean(margins),
        implicit_margin_nats=None if implicit is None else sample.mean(implicit),
        chosen_logps_nats=sample.mean(scores.chosen),
        chosen_perplexity=perplexity(scores.chosen, scores.n_chosen, sample.section, sample.clusters),
        kl_nats_per_token=sample.where(measured).mean(kl[measured]) if measured.any() else None,
        margins=_histogram(margins, edges),
        implicit_margins=None if implicit is None else _histogram(implicit, _edges([implicit])),
    )


def _edges(all_margins: list[np.ndarray]) -> np.ndarray:
    """Return edges of bins that cover 99 % of all values; constant values get bins of non-zero width."""
    low, high = np.quantile(np.concatenate(all_margins), [0.005, 0.995])
    return np.linspace(low, high, N_BINS + 1) if high > low else np.linspace(low - 1, low + 1, N_BINS + 1)


def _histogram(values: np.ndarray, edges: np.ndarray) -> Histogram:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    percents = (5, 25, 50, 75, 95)
    quantiles = np.percentile(values, percents)
    return Histogram(
        quantiles={str(p): float(q) for p, q in zip(percents, quantiles, strict=True)},
        edges=edges.tolist(),
        counts=counts.tolist(),
    )


def slices_of(sample: PairSample, right: Columns, contests: list[tuple[str, str]]) -> Iterator[Slice]:
    """Yield the slices by each property that has at least two values.

    Args:
        right: by model what `correct` returns.
        contests: newer and older models to compare.
    """
    column = sample.column
    n_pairs = len(column["id"])
    subset = column["source"].astype(str)
    source = np.array([name.rpartition("/")[0] or name for name in subset.tolist()])
    if len(set(source)) == len(set(subset)):
        source, subset = subset, np.array([""] * n_pairs)  # no source has several subsets
    turns, prompts = column["n_turns"], column["n_prompt_tokens"]
    ways: list[
        tuple[Literal["source", "subset", "n_turns", "prompt_tokens", "length"], np.ndarray, Callable[[Any], str]]
    ] = [
        ("source", source, str),
        ("subset", subset, str),
        ("n_turns", np.minimum(turns, MAX_TURNS_TOLD_APART), _turns_name),
        ("prompt_tokens", _bucket(prompts), _bucket_name),
        ("length", np.sign(longer_by(column)), lambda sign: STRATA[STRATA_SIGNS[sign]]),
    ]
    for by, values, name in ways:
        found = np.unique(values).tolist()
        if len(found) < 2:
            continue
        for value in found:
            inside = values == value
            part = sample.where(inside)
            yield Slice(
                by=by,
                name=name(value),
                n_pairs=int(inside.sum()),
                n_prompts=part.clusters.n,
                accuracy={stage: part.share(halves[inside]) for stage, halves in right.items()},
                gains={
                    f"{newer}_vs_{older}": paired_gain(
                        right[newer][inside] - right[older][inside], part.clusters, sample.section.confidence
                    )
                    for newer, older in contests
                },
            )


def _turns_name(n_turns: int) -> str:
    return f"{n_turns} or more" if n_turns == MAX_TURNS_TOLD_APART else str(n_turns)


def _bucket(n_tokens: np.ndarray) -> np.ndarray:
    """Return the bucket of each length: 0 up to `SHORTEST_PROMPTS` tokens, 1 up to twice as many, and so on."""
    halvings: np.ndarray = np.ceil(np.log2(np.maximum(n_tokens, SHORTEST_PROMPTS) / SHORTEST_PROMPTS)).astype(int)
    return halvings


def _bucket_name(bucket: int) -> str:
    longest = SHORTEST_PROMPTS * 2**bucket
    return f"{longest // 2 + 1}-{longest}" if bucket else f"1-{longest}"


def longer_by(column: Columns) -> np.ndarray:
    """Return how many tokens the chosen response of each pair has more than the rejected one."""
    longer: np.ndarray = column["n_chosen_tokens"].astype(int) - column["n_rejected_tokens"].astype(int)
    return longer


def _length(
    sample: PairSample, margins: Columns, implicit: np.ndarray | None, contests: list[tuple[str, str]]
) -> Length:
    section, clusters = sample.section, sample.clusters
    longer = longer_by(sample.column)
    strata = {}
    for sign, name in STRATA_SIGNS.items():
        inside = np.sign(longer) == sign
        some = bool(inside.any())
        part = sample.where(inside)
        strata[name] = Stratum(
            n_pairs=int(inside.sum()),
            n_prompts=part.clusters.n,
            accuracy={s: part.share(correct(m[inside])) for s, m in margins.items()} if some else {},
            implicit_accuracy=part.share(correct(implicit[inside])) if some and implicit is not None else None,
        )
    correlations = {stage: rank_correlation(margin, longer, section, clusters) for stage, margin in margins.items()}
    per_token = {stage: correct(per_token_margins(_scores(sample.column, stage))) for stage in margins}
    return Length(
        prefer_longer=sample.share(correct(longer)),
        strata=strata,
        margin_correlation={stage: found for stage, found in correlations.items() if found is not None},
        implicit_correlation=None if implicit is None else rank_correlation(implicit, longer, section, clusters),
        per_token={
            f"{newer}_vs_{older}": compare(per_token[newer], per_token[older], section, clusters)
            for newer, older in contests
        },
    )


def _wrong(
    pairs: pa.Table, margins: np.ndarray, is_implicit: bool, beta: float | None, section: EvaluationSection
) -> list[WrongPair]:
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
                confidence=float(expit(-beta * margins[i])) if is_implicit and beta is not None else None,
                true_margin=row["true_margin"],
                prompt=row["prompt"][-SHOWN_CHARS:],
                chosen=row["chosen"][:SHOWN_CHARS],
                rejected=row["rejected"][:SHOWN_CHARS],
            )
        )
    return found


def _difference(column: Columns, minuend: str, subtrahend: str) -> np.ndarray:
    difference: np.ndarray = column[minuend].astype(np.float64) - column[subtrahend].astype(np.float64)
    return difference


def _scores(column: Columns, stage: str) -> Scores:
    """Return a model's scores. A champion with another tokenizer has its own token counts."""
    logps = (column[f"{stage}_{which}_logps"].astype(np.float64) for which in ("chosen", "rejected"))
    names = ("n_chosen_tokens", "n_rejected_tokens")
    return Scores(*logps, *(column.get(f"{stage}_{name}", column[name]).astype(np.int64) for name in names))
