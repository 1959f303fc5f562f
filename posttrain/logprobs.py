"""Log-probabilities of whole responses, and the DPO loss in plain torch: what TRL is tested against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from posttrain.config import ModelSection
from posttrain.model import Model, autocast
from posttrain.progress import progress_bar


def completion_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Summed log-probability of each sequence's completion, in nats, float32, shape (batch,).

    Args:
        logits: (batch, length, vocabulary); position t predicts token t + 1.
        input_ids: (batch, length).
        completion_mask: (batch, length), 1 where a token belongs to the completion.
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
    """The loss of each pair, and its implicit-reward margin; every tensor has shape (pairs,).

    Source: Rafailov et al. 2023, equation 7: -log sigmoid(beta (log pi(yw)/ref(yw) - log pi(yl)/ref(yl))); the reward is
    beta log pi(y)/ref(y), section 5.

    A policy equal to its reference has the loss ln 2 = 0.6931 and the margin 0, whatever beta is.
    """
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)
    margins = chosen_rewards - rejected_rewards
    return -F.logsigmoid(margins), margins


@dataclass(frozen=True)
class PairLogps:
    """What a model makes of each pair, row by row: nats summed over completion tokens, and the numbers of these."""

    chosen_logps: np.ndarray
    rejected_logps: np.ndarray
    n_chosen_tokens: np.ndarray
    n_rejected_tokens: np.ndarray


def score_pairs(model: Model, rows: Dataset, section: ModelSection, tokens_per_batch: int, label: str) -> PairLogps:
    """Log-probabilities of every pair's responses, float32, in the order of the rows.

    Sequences are sorted by length and packed into batches of at most `tokens_per_batch` padded tokens, so that little is
    padded. The forward is the one that TRL trains with, so a policy can be compared with its reference to rounding.

    Args:
        rows: `prompt_ids, chosen_ids, rejected_ids` as `tokenise_pairs` gives them.
        label: names the work on the progress bar.
    """
    prompts: list[list[int]] = list(rows["prompt_ids"])
    responses: list[list[int]] = [*rows["chosen_ids"], *rows["rejected_ids"]]
    logps = np.zeros(len(responses), dtype=np.float32)
    n_pairs = len(prompts)
    _ensure_fused_head(model)
    where = next(model.parameters()).device
    was_training = model.training
    model.eval()
    lengths = [len(prompts[i % n_pairs]) + len(response) for i, response in enumerate(responses)]
    with torch.no_grad(), autocast(section), progress_bar(len(responses), label, " responses") as progress:
        for batch in batches_by_length(lengths, tokens_per_batch):
            longest = lengths[batch[0]]
            input_ids = torch.zeros(len(batch), longest, dtype=torch.long)
            attention_mask = torch.zeros_like(input_ids)
            labels = torch.full_like(input_ids, -100)
            for row, i in enumerate(batch):
                prompt, response = prompts[i % n_pairs], responses[i]
                input_ids[row, : lengths[i]] = torch.tensor(prompt + response)
                attention_mask[row, : lengths[i]] = 1
                labels[row, len(prompt) : lengths[i]] = torch.tensor(response)
            output = model(
                input_ids=input_ids.to(where),
                attention_mask=attention_mask.to(where),
                labels=labels.to(where),
                fused_lm_head=True,
            )
            logps[batch] = output.log_probs.float().sum(dim=1).cpu().numpy()
            progress.update(len(batch))
    model.train(was_training)
    counts = np.array([len(response) for response in responses], dtype=np.int32)
    return PairLogps(logps[:n_pairs], logps[n_pairs:], counts[:n_pairs], counts[n_pairs:])


def batches_by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, each of at most `tokens_per_batch` tokens once padded, or of one sequence."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _ensure_fused_head(model: Model) -> None:
    """Gives the model TRL's forward that returns log-probabilities, unless a trainer has given it its own already."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    function = getattr(inner.forward, "__func__", inner.forward)
    if function.__code__.co_name != "_fused_forward":
        add_fused_lm_head(inner)
