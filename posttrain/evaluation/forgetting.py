"""Forgetting: the loss on held-out SFT data, of the newest model and of those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset

from posttrain.chat.tokens import SftTokens
from posttrain.config import EvaluationSection
from posttrain.evaluation.figures import STAGES, Forgetting
from posttrain.evaluation.intervals import Estimate, bootstrap_ratio

LEAST_ROWS = 20
"""With fewer held-out rows of a separate SFT dataset, the chosen responses of the test pairs are measured."""
MOST_ROWS = 500
"""More held-out rows are not scored."""


@dataclass(frozen=True)
class HeldOut:
    """Log-probabilities of the completions of held-out rows by every model, in nats."""

    data: Literal["instructions", "chosen"]
    logps: dict[str, np.ndarray]
    """By stage, summed over tokens."""
    n_tokens: np.ndarray


def held_out_rows(tokens: SftTokens | None) -> Dataset | None:
    """Return the held-out rows of a separate SFT dataset as pairs whose rejected response is empty but for one token.

    The chosen response of such a pair is everything from the first token that SFT learns; None if there are too few rows.
    """
    if tokens is None or tokens.tables["test"].num_rows < LEAST_ROWS:
        return None
    rows = tokens.rows("test")
    pairs = []
    for row in rows.select(range(min(len(rows), MOST_ROWS))):
        learned = [i for i, label in enumerate(row["labels"]) if label != -100]
        if learned:
            first, end = learned[0], learned[-1] + 1
            ids = row["input_ids"]
            pairs.append(
                {"prompt_ids": ids[:first], "chosen_ids": ids[first:end], "rejected_ids": ids[first : first + 1]}
            )
    return Dataset.from_list(pairs) if len(pairs) >= LEAST_ROWS else None


def of_chosen(pairs: pa.Table) -> HeldOut:
    """Return the scores of the chosen responses of the test pairs.

    Args:
        pairs: rows as in `posttrain.evaluation.scoring.Evaluation.pairs`.
    """
    names = {
        stage: f"{stage}_chosen_logps"
        for stage in STAGES
        if f"{stage}_chosen_logps" in pairs.column_names and f"{stage}_n_chosen_tokens" not in pairs.column_names
    }
    logps = {stage: pairs[name].to_numpy().astype(np.float64) for stage, name in names.items()}
    return HeldOut("chosen", logps, pairs["n_chosen_tokens"].to_numpy().astype(np.float64))


def measure_forgetting(held_out: HeldOut, section: EvaluationSection) -> Forgetting:
    """Return the loss of every model, and its rise from SFT and from the champion to the newest model."""
    logps, n_tokens = held_out.logps, held_out.n_tokens

    def per_token(values: np.ndarray) -> Estimate:
        return bootstrap_ratio(values, n_tokens, section)

    newest = next(stage for stage in ("dpo", "sft", "base") if stage in logps)
    return Forgetting(
        data=held_out.data,
        n_rows=len(n_tokens),
        losses={stage: per_token(-found) for stage, found in logps.items()},
        rises={
            f"{newest}_vs_{older}": per_token(logps[older] - logps[newest])
            for older in ("sft", "champion")
            if older in logps and older != newest
        },
    )
