"""KL divergence of a policy from its reference, measured on next-token distributions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset

from posttrain.config import ModelSection
from posttrain.models.loading import Model
from posttrain.models.precision import autocast

PLACES_PER_RESPONSE = 4
"""Positions sampled per response. It bounds the memory for the reference, 4 bytes x positions x vocabulary: 0.6 GiB for 128
pairs and 152,000 tokens."""


class NextTokenKL:
    """KL(policy || reference) over the whole vocabulary, at positions sampled from the responses.

    Call `remember` with the reference first and `measure` with the policy later, so that only one model is in memory at a time.
    """

    def __init__(self, rows: Dataset, n_pairs: int, seed: int) -> None:
        """
        Args:
            rows: `prompt_ids, chosen_ids, rejected_ids`.
            n_pairs: number of pairs to sample, with up to `PLACES_PER_RESPONSE` positions from each of their two responses.
            seed: of the sample.
        """
        generator = np.random.default_rng(seed)
        drawn = np.sort(generator.permutation(len(rows))[:n_pairs])
        self.drawn: list[int] = drawn.tolist()
        """Indices of the sampled pairs in `rows`."""
        self._texts: list[tuple[list[int], list[int]]] = []
        for row in rows.select(self.drawn):
            for response in (row["chosen_ids"], row["rejected_ids"]):
                n_places = min(PLACES_PER_RESPONSE, len(response))
                places = np.sort(generator.choice(len(response), n_places, replace=False))
                # The logits at a position predict the next token.
                before = (places + len(row["prompt_ids"]) - 1).tolist()
                self._texts.append((row["prompt_ids"] + response, before))
        self._reference: list[torch.Tensor] = []

    def remember(self, reference: Model, section: ModelSection) -> None:
        """Store the reference's log-probabilities at every sampled position, on the CPU."""
        self._reference = [logps.cpu() for logps in self._next_token_logps(reference, section)]

    def measure(self, policy: Model, section: ModelSection) -> np.ndarray:
        """Return the mean KL of each sampled pair in nats per token, float64 of shape (sampled pairs,)."""
        totals = np.zeros((len(self.drawn), 2))
        for i, logps in enumerate(self._next_token_logps(policy, section)):
            reference = self._reference[i].to(logps.device)
            kl = (logps.exp() * (logps - reference)).sum(dim=-1)
            totals[i // 2] += [float(kl.double().sum()), len(kl)]
        means: np.ndarray = totals[:, 0] / totals[:, 1]
        return means

    def _next_token_logps(self, model: Model, section: ModelSection) -> Iterator[torch.Tensor]:
        """Yield the log-probabilities of one text at a time, so without padding: float32 (positions, vocabulary)."""
        where = next(model.parameters()).device
        was_training = model.training
        model.eval()
        with torch.no_grad(), autocast(section):
            for input_ids, places in self._texts:
                logits = model(input_ids=torch.tensor([input_ids], device=where)).logits[0, places]
                yield logits.float().log_softmax(dim=-1)
        model.train(was_training)
