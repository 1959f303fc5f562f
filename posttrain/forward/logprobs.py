"""Log-probabilities of whole responses, and the DPO loss in plain PyTorch, which tests compare with TRL's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from posttrain.compat.trl_internals import own_forward_afterwards
from posttrain.config import ModelSection
from posttrain.forward.balance import balance
from posttrain.forward.flat import announce, use_flat_batches
from posttrain.forward.flat_row import lay_out, to_device
from posttrain.forward.probe import evaluating
from posttrain.models.loading import Model
from posttrain.models.precision import autocast
from posttrain.progress import progress_bar


def completion_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Return the summed log-probability of each sequence's completion: nats, float32, shape (batch,).

    Args:
        logits: (batch, length, vocabulary); position t predicts token t + 1.
        input_ids: (batch, length) token ids.
        completion_mask: (batch, length), 1 for tokens of the completion.
    """
    logps = logits[:, :-1].float().log_softmax(dim=-1)
    token_logps = logps.gather(2, input_ids[:, 1:, None]).squeeze(2)
    return (token_logps * completion_mask[:, 1:]).sum(dim=1)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the implicit-reward margin of each pair; all tensors have shape (pairs,).

    A policy equal to its reference has loss ln 2 = 0.6931 and margin 0 for every beta.

    Source: Rafailov et al. 2023, equation 7: -log sigmoid(beta (log pi(yw)/ref(yw) - log pi(yl)/ref(yl))). The implicit
    reward is beta log pi(y)/ref(y), section 5.
    """
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    return -F.logsigmoid(margins), margins


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of pairs under one model, in nats, summed over completion tokens, and the number of those tokens."""

    chosen_logps: np.ndarray
    rejected_logps: np.ndarray
    n_chosen_tokens: np.ndarray
    n_rejected_tokens: np.ndarray


def score_pairs(model: Model, rows: Dataset, section: ModelSection, tokens_per_batch: int, label: str) -> PairLogps:
    """Return the log-probabilities of every pair's responses in evaluation mode. See `score_as_it_is`.

    The model has its own forward pass again at the end, so that its memory is freed when the last reference to it is gone.
    """
    with own_forward_afterwards(model), evaluating(model):
        return score_as_it_is(model, rows, section, tokens_per_batch, label)


def score_as_it_is(model: Model, rows: Dataset, section: ModelSection, tokens_per_batch: int, label: str) -> PairLogps:
    """Return the log-probabilities of every pair's responses, float32, in the order of the rows.

    Uses the same forward pass as training, so that policy and reference differ only by rounding. Each prompt is computed
    once for all its responses, and a response that is part of several pairs once.

    Args:
        rows: `prompt_ids, chosen_ids, rejected_ids` as `tokenise_pairs` returns them.
        tokens_per_batch: largest number of tokens in a batch.
        label: text of the progress bar.
    """
    return merge(rows, [_responses(model, rows, section, Batching(tokens_per_batch, label))])


@dataclass(frozen=True)
class Batching:
    """Size of the batches, and which of them are computed: those of one of several parts, which take about as long."""

    tokens_per_batch: int
    label: str
    """Text of the progress bar."""
    part: int = 0
    n_parts: int = 1


@dataclass(frozen=True)
class ResponseLogps:
    """Log-probabilities of some of the responses to pairs: all chosen responses are counted first, then the rejected ones."""

    positions: np.ndarray
    logps: np.ndarray


def score_part(model: Model, rows: Dataset, section: ModelSection, batching: Batching) -> ResponseLogps:
    """Return what `score_pairs` computes, for one part of the batches. The batches do not depend on the number of parts."""
    with own_forward_afterwards(model), evaluating(model):
        return _responses(model, rows, section, batching)


def merge(rows: Dataset, parts: Sequence[ResponseLogps]) -> PairLogps:
    """Return the log-probabilities of pairs from those of their responses, each of which is in one part."""
    positions = np.concatenate([part.positions for part in parts])
    n_pairs = len(rows)
    if not np.array_equal(np.sort(positions), np.arange(2 * n_pairs)):
        raise ValueError(f"the parts have {len(positions)} responses, not each of the {2 * n_pairs} once")
    logps = np.zeros(2 * n_pairs, dtype=np.float32)
    logps[positions] = np.concatenate([part.logps for part in parts])
    counts = [np.array([len(ids) for ids in rows[name]], dtype=np.int32) for name in ("chosen_ids", "rejected_ids")]
    return PairLogps(logps[:n_pairs], logps[n_pairs:], *counts)


def _responses(model: Model, rows: Dataset, section: ModelSection, batching: Batching) -> ResponseLogps:
    prompts: list[list[int]] = [*rows["prompt_ids"]] * 2
    responses: list[list[int]] = [*rows["chosen_ids"], *rows["rejected_ids"]]
    padded = use_flat_batches(model, section)
    announce(padded)
    batches = part_of(
        [*(batches_by_length if padded else batches_by_prompt)(prompts, responses, batching.tokens_per_batch)],
        (prompts, responses),
        batching,
    )
    where = next(model.parameters()).device
    found: list[np.ndarray] = [np.zeros(0, dtype=np.float32)]
    n_all = sum(map(len, batches))
    with torch.no_grad(), autocast(section), progress_bar(n_all, batching.label, " responses") as progress:
        for batch in batches:
            make = _padded if padded else lay_out
            inputs = make([prompts[i] for i in batch], [responses[i] for i in batch])
            inputs = to_device(inputs, where)
            output = model(**inputs, fused_lm_head=True) if padded else model(flat=inputs, fused_lm_head=True)
            found.append(output.log_probs.float().sum(dim=1).cpu().numpy())
            progress.update(len(batch))
    positions = np.array([i for batch in batches for i in batch], dtype=np.int64)
    return ResponseLogps(positions, np.concatenate(found))


def part_of(
    batches: list[list[int]], texts: tuple[Sequence[list[int]], Sequence[list[int]]], batching: Batching
) -> list[list[int]]:
    """Return the batches of one part, in their order. All parts have about as many tokens.

    Args:
        texts: the prompt of each response, and the responses.
    """
    prompts, responses = texts
    costs = [
        sum(map(len, {tuple(prompts[i]) for i in batch})) + sum(len(responses[i]) for i in batch) for batch in batches
    ]
    return [batches[i] for i in sorted(balance(costs, batching.n_parts)[batching.part])]


def batches_by_prompt(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], tokens_per_batch: int
) -> Iterator[list[int]]:
    """Yield the indices of batches of at most `tokens_per_batch` tokens, each prompt counted once, or of a single sequence.

    Responses to one prompt follow each other. Prompts with most tokens come first, so that a lack of memory shows at once.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(i)

    def n_all(members: list[int]) -> int:
        return len(prompts[members[0]]) + sum(len(responses[i]) for i in members)

    batch: list[int] = []
    n_tokens = 0
    for members in sorted(groups.values(), key=n_all, reverse=True):
        n_prompt = len(prompts[members[0]])
        for place, i in enumerate(members):
            n_new = len(responses[i]) + (n_prompt if place == 0 or not batch else 0)
            if batch and n_tokens + n_new > tokens_per_batch:
                yield batch
                batch, n_tokens, n_new = [], 0, len(responses[i]) + n_prompt
            batch.append(i)
            n_tokens += n_new
    if batch:
        yield batch


def batches_by_length(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], tokens_per_batch: int
) -> Iterator[list[int]]:
    """Yield the indices of batches, longest first, of at most `tokens_per_batch` tokens with padding, or of a single sequence."""
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padded(prompts: list[list[int]], responses: list[list[int]]) -> dict[str, Tensor]:
    """Return a batch padded as in TRL. The first sequence must be the longest."""
    input_ids = torch.zeros(len(prompts), len(prompts[0]) + len(responses[0]), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor(prompt + response)
        attention_mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(response)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
