"""How far a policy has moved from its reference, measured on the next token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset

from posttrain.config import ModelSection
from posttrain.models.loading import Model
from posttrain.models.precision import autocast

PLACES_PER_RESPONSE = 4
"""Bounds what is kept of the reference: 4 bytes x places x vocabulary, 0.6 GiB for 128 pairs and 152 000 tokens."""


class NextTokenKL:
    """KL(policy || reference) over the whole vocabulary, at places drawn from responses.

    First `remember` the reference, then `measure` the policy: the two need never be in memory together.
    """

    def __init__(self, rows: Dataset, n_pairs: int, seed: int) -> None:
        """
        Args:
            rows: `prompt_ids, chosen_ids, rejected_ids`.
            n_pairs: how many pairs to draw; from each, up to `PLACES_PER_RESPONSE` places of either response.
        """
        generator = np.random.default_rng(seed)
        drawn = np.sort(generator.permutation(len(rows))[:n_pairs])
        self.drawn: list[int] = drawn.tolist()
        """Positions of the drawn pairs in `rows`."""
        self._texts: list[tuple[list[int], list[int]]] = []
        for row in rows.select(self.drawn):
            for response in (row["chosen_ids"], row["rejected_ids"]):
                n_places = min(PLACES_PER_RESPONSE, len(response))
                places = np.sort(generator.choice(len(response), n_places, replace=False))
                # The logits at a position are those of the next one.
                before = (places + len(row["prompt_ids"]) - 1).tolist()
                self._texts.append((row["prompt_ids"] + response, before))
        self._reference: list[torch.Tensor] = []

    def remember(self, reference: Model, section: ModelSection) -> None:
        """Keeps the reference's log-probabilities at every place."""
        self._reference = [logps.cpu() for logps in self._next_token_logps(reference, section)]

    def measure(self, policy: Model, section: ModelSection) -> np.ndarray:
        """Mean KL in nats a token for each drawn pair, float64, shape (drawn pairs,)."""
        totals = np.zeros((len(self.drawn), 2))
        for i, logps in enumerate(self._next_token_logps(policy, section)):
            reference = self._reference[i].to(logps.device)
            kl = (logps.exp() * (logps - reference)).sum(dim=-1)
            totals[i // 2] += [float(kl.double().sum()), len(kl)]
        means: np.ndarray = totals[:, 0] / totals[:, 1]
        return means

    def _next_token_logps(self, model: Model, section: ModelSection) -> Iterator[torch.Tensor]:
        """One text at a time, so that the size of a batch cannot matter; each (places, vocabulary), float32."""
        where = next(model.parameters()).device
        was_training = model.training
        model.eval()
        with torch.no_grad(), autocast(section):
            for input_ids, places in self._texts:
                logits = model(input_ids=torch.tensor([input_ids], device=where)).logits[0, places]
                yield logits.float().log_softmax(dim=-1)
        model.train(was_training)
