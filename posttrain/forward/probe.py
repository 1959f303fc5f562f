"""Trials of a loaded model on a few tokens: is what a batch computes what the model computes for one sequence alone?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.forward.flat_row import lay_out, to_device
from posttrain.models.precision import autocast, compute_dtype

N_PROMPT = 133
"""Tokens of the probe's prompt: with the responses more than a block of FlexAttention's mask."""
GRADIENT_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.2}
"""Largest accepted difference between two ways to compute a gradient, relative to its norm."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Largest accepted difference, in nats, between two ways to compute the probe's few tokens."""


@dataclass(frozen=True)
class Probe:
    """A prompt with three responses, and their log-probabilities by the model's own forward pass, one at a time."""

    prompt: list[int]
    responses: list[list[int]]
    logps: Tensor
    """(3,) nats."""
    tolerance: float
    section: ModelSection | None = None
    """Settings by which the model is computed; None: without autocast."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, section: ModelSection | None = None, *, training: bool = False) -> Probe:
        """Return the probe of a model, in evaluation or in training mode."""
        generator = torch.Generator().manual_seed(0)
        n_vocabulary = model.config.get_text_config().vocab_size
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or N_PROMPT + 5
        prompt, *responses = (
            torch.randint(n_vocabulary, (length,), generator=generator).tolist()
            for length in (max(1, min(N_PROMPT, most - 5)), 5, 3, 4)
        )
        where = next(model.parameters()).device
        with evaluating(model), _autocast(section):
            model.train(training)
            logps = [_own_logps(model, prompt, response).sum() for response in responses]
        return cls(prompt, responses, torch.stack(logps).to(where), TOLERANCE[_precision(model, section)], section)

    def difference(self, other: Probe) -> float:
        """Return the largest difference, in nats, to another probe."""
        return _largest(self.logps - other.logps)

    @torch.no_grad()
    def flat_difference(self, model: Any) -> tuple[float, set[int]]:
        """Return the largest difference, in nats, of a flat row, and the sliding windows that its layers used."""
        where = self.logps.device
        flat = lay_out([self.prompt] * len(self.responses), self.responses)
        with evaluating(model), _autocast(self.section):
            found = model(flat=to_device(flat, where), fused_lm_head=True).log_probs.float().sum(dim=1)
        return _largest(found - self.logps), flat["segments"].windows

    def gradient_difference(self, model: Any) -> float:
        """Return how far the gradient of a flat row is from that of one response at a time, divided by what is accepted.

        It is that of one weight near the input, which the gradients of all layers reach.
        """
        if (name := _early_weight(model)) is None:
            return 0.0
        weight = model.get_parameter(name)
        flat = to_device(lay_out([self.prompt] * len(self.responses), self.responses), self.logps.device)
        with evaluating(model), torch.enable_grad():
            with _autocast(self.section):
                own = torch.stack([_own_logps(model, self.prompt, response).sum() for response in self.responses]).sum()
            expected = torch.autograd.grad(own, weight)[0].float()
            with _autocast(self.section):
                together = model(flat=flat, fused_lm_head=True).log_probs.float().sum()
            found = torch.autograd.grad(together, weight)[0].float()
        accepted = GRADIENT_TOLERANCE[_precision(model, self.section)] * expected.norm()
        return float((found - expected).norm() / accepted.clamp(min=1e-8))

    def check_padded(self, model: Any) -> None:
        """Check that a padded batch with TRL's head has the log-probabilities of the model itself.

        Raises:
            UserError: it has not, or the model cannot compute it.
        """
        try:
            difference = self._padded_difference(model)
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, NotImplementedError) as error:
            raise UserError(
                f"model.base: {_family(model)} models cannot be trained here: TRL's forward pass fails ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}): choose a model of another family"
            ) from error
        if self.logps.isfinite().all() and not difference <= self.tolerance:
            raise UserError(
                f"model.base: {_family(model)} models cannot be trained here: in a padded batch, TRL's forward pass differs from "
                f"the model's own by {difference:.2g} nats per response, so another model would be trained: choose a model of "
                "another family"
            )

    @torch.no_grad()
    def _padded_difference(self, model: Any) -> float:
        n_prompt, where = len(self.prompt), self.logps.device
        longest = n_prompt + max(map(len, self.responses))
        input_ids = torch.zeros(len(self.responses), longest, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, -100)
        for row, response in enumerate(self.responses):
            end = n_prompt + len(response)
            input_ids[row, :end] = torch.tensor(self.prompt + response)
            attention_mask[row, :end] = 1
            labels[row, n_prompt:end] = torch.tensor(response)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        with evaluating(model), _autocast(self.section):
            output = model(**to_device(batch, where), fused_lm_head=True)
        return _largest(output.log_probs.float().sum(dim=1) - self.logps)


def _own_logps(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """Return the log-probability of each token of a response by the model's own forward pass."""
    where = next(model.parameters()).device
    ids = torch.tensor([prompt + response], device=where)
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    of_tokens = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
    logps: Tensor = of_tokens.gather(1, torch.tensor(response, device=where)[:, None])[:, 0]
    return logps


def _autocast(section: ModelSection | None) -> AbstractContextManager[Any]:
    return nullcontext() if section is None else autocast(section)


def _precision(model: Any, section: ModelSection | None) -> torch.dtype:
    """Return the precision of matrix products; a base in 4 bit has none of its own."""
    dtype = model.dtype if section is None else compute_dtype(section)
    narrow = model.dtype in (torch.bfloat16, torch.float16)
    return model.dtype if narrow and dtype == torch.float32 else dtype if dtype in TOLERANCE else torch.float32


def _early_weight(model: Any) -> str | None:
    """Return the name of a trained weight of the first layer; of an adapter, one whose gradient is not 0 at its start."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad and "embed" not in name]
    return next((name for name in names if "lora_B" in name), names[0] if names else None)


def _largest(differences: Tensor) -> float:
    return float(differences.abs().max())


def _family(model: Any) -> str:
    return str(model.config.get_text_config().model_type)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def left_padding_is_exact(model: Any, pad_id: int, section: ModelSection | None = None) -> bool:
    """Return whether a model that generates continues a prompt equally with and without padding on its left.

    Args:
        section: how the model was loaded; None: in one precision.
    """
    generator = torch.Generator().manual_seed(0)
    n_vocabulary = model.config.get_text_config().vocab_size
    prompt = torch.randint(n_vocabulary, (1, 5), generator=generator)
    where = next(model.parameters()).device
    padded = torch.nn.functional.pad(prompt, (4, 0), value=pad_id)
    mask = torch.nn.functional.pad(torch.ones_like(prompt), (4, 0))
    options = {
        "max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, "output_logits": True
    }  # fmt: skip
    with evaluating(model), _autocast(section):
        alone, together = (
            torch.stack(
                model.generate(input_ids=ids.to(where), attention_mask=seen.to(where), **options).logits
            ).float()
            for ids, seen in ((prompt, torch.ones_like(prompt)), (padded, mask))
        )
    return _largest(alone.log_softmax(-1) - together.log_softmax(-1)) <= TOLERANCE[_precision(model, section)]
