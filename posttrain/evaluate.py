"""Preference accuracy on held-out pairs: base, SFT and DPO on the same pairs, each figure with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest, norm

from posttrain.chat import tokenise_pairs
from posttrain.checkpoint import Base, Checkpoint
from posttrain.config import EvaluationSection, ModelSection
from posttrain.data.preferences import Preferences
from posttrain.errors import UserError
from posttrain.logprobs import PairLogps, score_pairs
from posttrain.model import load_chat, load_model
from posttrain.reference import Lengths, ReferenceLogps

STAGES = ("base", "sft", "dpo")


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Result):
    """A figure and the ends of its interval."""

    value: float
    low: float
    high: float

    def in_percent(self) -> str:
        """The figure and its interval: `84.4 (80.6-87.6)`."""
        value, low, high = (f"{100 * end:.1f}".replace("100.0", "100") for end in (self.value, self.low, self.high))
        return f"{value} ({low}-{high})"


class StageFigures(_Result):
    """What one model makes of the test pairs; None where a figure does not apply."""

    likelihood_accuracy: Estimate
    """Share of pairs whose chosen response has the higher summed log-probability."""
    normalised_accuracy: Estimate
    """The same for the mean log-probability of a token, so that length does not count."""
    implicit_accuracy: Estimate | None
    """Share of pairs whose chosen response gained more over the reference (DPO only)."""
    true_agreement: Estimate | None
    """Share of pairs ordered as the hidden reward orders them (demo only)."""
    likelihood_margin_nats: Estimate
    """Mean of log p(chosen) - log p(rejected)."""
    implicit_margin_nats: Estimate | None
    """Mean of the same difference less the reference's; times beta it is the reward margin."""
    chosen_logps_nats: Estimate
    """Mean summed log-probability of the chosen responses."""


class Comparison(_Result):
    """Two models on the same pairs, by likelihood accuracy."""

    gain: Estimate
    """Accuracy of the newer less that of the older; the interval is a paired bootstrap."""
    n_gained: int
    """Pairs that the newer model orders better."""
    n_lost: int
    """Pairs that the newer model orders worse."""
    p_value: float
    """McNemar's exact test, two-sided: the chance of a split this uneven were both models equally good."""


class Figures(_Result):
    """The evaluation without its rows, as it is written to JSON."""

    n_pairs: int
    stages: dict[str, StageFigures | None]
    comparisons: dict[str, Comparison]
    """`newer_vs_older`, e.g. `dpo_vs_sft`."""
    cut: dict[str, int]
    """How many test pairs lost tokens, or were left out, and why."""
    confidence: float
    seed: int
    digests: dict[str, str]
    """Of the test pairs and of each model."""


@dataclass(frozen=True)
class Evaluation:
    """The figures, and the rows behind them."""

    figures: Figures
    pairs: pa.Table
    """One row a test pair: id, source, true_margin, n_chosen_tokens, n_rejected_tokens, and for each stage
    `STAGE_chosen_logps` and `STAGE_rejected_logps`, nats summed over completion tokens."""

    def save(self, folder: Path) -> None:
        """Writes `evaluation.json` and `pairs.parquet` into a folder."""
        (folder / "evaluation.json").write_text(self.figures.model_dump_json(indent=2), encoding="utf-8")
        pq.write_table(self.pairs, folder / "pairs.parquet")

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """What `save` wrote."""
        figures = Figures.model_validate_json((folder / "evaluation.json").read_text(encoding="utf-8"))
        return cls(figures, pq.read_table(folder / "pairs.parquet"))


def evaluate(
    preferences: Preferences,
    base: Base,
    sft: Checkpoint | None,
    dpo: Checkpoint | None,
    reference: ReferenceLogps | None,
    model: ModelSection,
    lengths: Lengths,
    section: EvaluationSection,
) -> Evaluation:
    """Scores the test pairs with every model there is, all of them on the same tokens.

    Args:
        reference: the stored log-probabilities of the SFT checkpoint, which are then not computed again.

    Raises:
        UserError: no test pair is left.
    """
    chat = load_chat(base, model, sft or dpo)
    test = tokenise_pairs(chat, preferences.test, lengths.max_length, lengths.max_prompt_length)
    if len(test.rows) == 0:
        raise UserError(
            f"evaluation: no test pair is left of {len(preferences.test)} ({test.counts}): raise dpo.max_length or data.test_size"
        )
    scores: dict[str, PairLogps] = {}
    for stage, checkpoint in (("base", None), ("sft", sft), ("dpo", dpo)):
        if stage != "base" and checkpoint is None:
            continue
        if stage == "sft" and reference is not None:
            scores[stage] = reference.of(test.rows)
            continue
        policy = load_model(base, model, checkpoint)
        scores[stage] = score_pairs(policy, test.rows, model, section.tokens_per_batch, f"{stage}, test pairs")
        del policy
        if not np.isfinite([scores[stage].chosen_logps, scores[stage].rejected_logps]).all():
            raise UserError(
                f"evaluation: {stage} gives log-probabilities that are not finite, so nothing can be said of it: its training "
                "diverged; lower the learning rate"
            )
    pairs = _pair_table(preferences, list(test.rows["id"]), scores)
    digests = {"base": base.digest} | {name: c.digest for name, c in (("sft", sft), ("dpo", dpo)) if c}
    return Evaluation(summarise(pairs, section, test.counts, {"preferences": preferences.digest, **digests}), pairs)


def summarise(pairs: pa.Table, section: EvaluationSection, cut: dict[str, int], digests: dict[str, str]) -> Figures:
    """Every figure of an evaluation, from its rows alone."""
    column = {
        name: pairs[name].to_numpy(zero_copy_only=False) for name in pairs.column_names if name not in ("id", "source")
    }
    present = [stage for stage in STAGES if f"{stage}_chosen_logps" in column]
    margins = {stage: column[f"{stage}_chosen_logps"] - column[f"{stage}_rejected_logps"] for stage in present}
    truth = column["true_margin"].astype(float)
    known = np.isfinite(truth) & (truth != 0)

    def share(correct: np.ndarray) -> Estimate:
        return wilson(float(correct.sum()), len(correct), section.confidence)

    def mean(values: np.ndarray) -> Estimate:
        return bootstrap_mean(values, section)

    stages: dict[str, StageFigures | None] = dict.fromkeys(STAGES)
    for stage in present:
        chosen, rejected = column[f"{stage}_chosen_logps"], column[f"{stage}_rejected_logps"]
        implicit = margins["dpo"] - margins["sft"] if stage == "dpo" and "sft" in margins else None
        stages[stage] = StageFigures(
            likelihood_accuracy=share(correct(margins[stage])),
            normalised_accuracy=share(
                correct(chosen / column["n_chosen_tokens"] - rejected / column["n_rejected_tokens"])
            ),
            implicit_accuracy=share(correct(implicit)) if implicit is not None else None,
            true_agreement=share(correct(margins[stage][known] * np.sign(truth[known]))) if known.any() else None,
            likelihood_margin_nats=mean(margins[stage]),
            implicit_margin_nats=mean(implicit) if implicit is not None else None,
            chosen_logps_nats=mean(chosen),
        )
    comparisons = {
        f"{newer}_vs_{older}": compare(correct(margins[newer]), correct(margins[older]), section)
        for older, newer in pairwise(present)
    }
    return Figures(
        n_pairs=pairs.num_rows,
        stages=stages,
        comparisons=comparisons,
        cut=cut,
        confidence=section.confidence,
        seed=section.seed,
        digests=digests,
    )


def correct(margins: np.ndarray) -> np.ndarray:
    """1 where the chosen response is ahead, 0 where it is behind, one half for a tie."""
    halves: np.ndarray = (np.sign(margins) + 1) / 2
    return halves


def wilson(n_correct: float, n: int, confidence: float) -> Estimate:
    """A share with Wilson's score interval, which holds at 0 and 1 and for few pairs too.

    Source: Wilson 1927; a tie counts one half.
    """
    z = float(norm.ppf((1 + confidence) / 2))
    share = n_correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return Estimate(value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def bootstrap_mean(values: np.ndarray, section: EvaluationSection) -> Estimate:
    """A mean with its percentile bootstrap interval (Efron 1979), the same for the same values and seed."""
    values = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(section.seed)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(section.n_bootstrap)]
    tail = (1 - section.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(value=float(values.mean()), low=float(low), high=float(high))


def compare(newer: np.ndarray, older: np.ndarray, section: EvaluationSection) -> Comparison:
    """How two models differ on the same pairs.

    Args:
        newer, older: 1, 0 or one half a pair, as `correct` gives them.

    Source: McNemar 1947, in its exact form: a sign test on the pairs where the two differ.
    """
    difference = newer - older
    n_gained, n_lost = int((difference > 0).sum()), int((difference < 0).sum())
    n_differing = n_gained + n_lost
    return Comparison(
        gain=bootstrap_mean(difference, section),
        n_gained=n_gained,
        n_lost=n_lost,
        p_value=float(binomtest(n_gained, n_differing).pvalue) if n_differing else 1.0,
    )


def _pair_table(preferences: Preferences, ids: list[str], scores: dict[str, PairLogps]) -> pa.Table:
    test = preferences.test.select_columns(["id", "source", "true_margin"])
    position = {row_id: i for i, row_id in enumerate(test["id"])}
    rows = test.select([position[row_id] for row_id in ids])
    any_stage = next(iter(scores.values()))
    columns = {
        "id": pa.array(ids),
        "source": pa.array(list(rows["source"])),
        "true_margin": pa.array(list(rows["true_margin"]), pa.float64()),
        "n_chosen_tokens": pa.array(any_stage.n_chosen_tokens),
        "n_rejected_tokens": pa.array(any_stage.n_rejected_tokens),
    }
    for stage, score in scores.items():
        columns[f"{stage}_chosen_logps"] = pa.array(score.chosen_logps)
        columns[f"{stage}_rejected_logps"] = pa.array(score.rejected_logps)
    return pa.table(columns)
