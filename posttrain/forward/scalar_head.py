"""Scores of a verifier over flat rows: each prompt is computed once for all its answers, and the head reads their last tokens.

The score of an answer is read where transformers' sequence classification models read it: at the last token that is not the pad
token. If the stop token is also the pad token, that is the last token before it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from posttrain.compat.transformers_internals import attention_implementation
from posttrain.compat.trl_internals import forward_accepts, replace_forward
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.forward.attention import attention_name, no_mask, register_attention
from posttrain.forward.flat_row import lay_out, to_device
from posttrain.forward.layout_support import expected_windows, why_padded
from posttrain.forward.probe import TOLERANCE, evaluating

FAILURES = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, NotImplementedError)


def lay_out_scored(prompts: Sequence[list[int]], answers: Sequence[list[int]], pad_id: int) -> dict[str, Any]:
    """Lay out n answers, each after its prompt, as one flat row of N tokens, the last token of each answer included.

    Returns:
        input_ids, position_ids: (1, N).
        segments: which of the N tokens see which.
        last: (n,) positions at which the answers' scores are read.
    """
    trimmed = [_without_padding(prompt, answer, pad_id) for prompt, answer in zip(prompts, answers, strict=True)]
    # `lay_out` leaves out the last token of a sequence, as it predicts nothing: a mark that is no token takes that place.
    marked = [[*answer, -1] for _, answer in trimmed]
    flat = lay_out([prompt for prompt, _ in trimmed], marked)
    ends = torch.tensor([len(answer) - 1 for answer in marked])
    last = flat["predicting"][flat["rows"][torch.arange(len(marked)), ends]]
    return {**{name: flat[name] for name in ("input_ids", "position_ids", "segments")}, "last": last}


def pad_scored(prompts: Sequence[list[int]], answers: Sequence[list[int]], pad_id: int) -> dict[str, Tensor]:
    """Return the same as a batch that is padded on the right, as in TRL."""
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


@dataclass(frozen=True)
class ScoredCollator:
    """Collate rows of `tokenise_pairs` for `RewardTrainer`: all chosen answers, then all rejected ones."""

    pad_id: int
    flat: bool
    """Whether the model accepts flat rows; otherwise the batch is padded."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        prompts = [example["prompt_ids"] for example in examples] * 2
        answers = [example[which] for which in ("chosen_ids", "rejected_ids") for example in examples]
        if not self.flat:
            return dict(pad_scored(prompts, answers, self.pad_id))
        flat = lay_out_scored(prompts, answers, self.pad_id)
        return {"flat": flat, "attention_mask": torch.ones_like(flat["input_ids"])}  # by which TRL counts tokens


def use_flat_scores(model: Any, section: ModelSection, pad_id: int) -> str | None:
    """Make a verifier accept flat rows (`model(flat=...)`), if it supports them.

    Returns:
        None, or the reason why the model needs padded batches.

    Raises:
        UserError: `model.layout: flat` or `model.attention: flex` is set for a model without flat batches.
    """
    register_attention()
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    reason = _try_flat(model, inner, section, pad_id)
    for name, setting, value in (("layout", section.layout, "flat"), ("attention", section.attention, "flex")):
        if reason is not None and setting == value:
            raise UserError(
                f"model.{name}: {value} needs flat batches, which this model does not support: {reason}: set model.{name} to auto"
            )
    return reason


def _try_flat(model: Any, inner: Any, section: ModelSection, pad_id: int) -> str | None:
    if reason := why_padded(model, section):
        return reason
    own = _ScoreProbe.of(model, pad_id)
    before = attention_implementation(inner)
    if "posttrain" not in before:
        inner.set_attn_implementation(attention_name(section.attention, inner.device))
    if not forward_accepts(inner, "flat"):
        _add_flat_forward(inner)
    try:
        difference, windows = own.flat_difference(model)
    except FAILURES as error:
        reason = f"the model cannot compute them ({type(error).__name__}: {str(error).splitlines()[0]})"
    else:
        if not difference <= own.tolerance:
            reason = f"in a trial its scores differed from the model's own by {difference:.2g}"
        elif missing := expected_windows(inner.config) - windows:
            reason = f"the model does not pass its sliding window of {min(missing)} tokens to the attention"
    if reason and "posttrain" not in before:
        inner.set_attn_implementation(before)
    return reason


@dataclass(frozen=True)
class _ScoreProbe:
    """A prompt with three answers, and their scores by the model's own forward pass, one at a time."""

    prompt: list[int]
    answers: list[list[int]]
    scores: Tensor
    tolerance: float
    pad_id: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, pad_id: int) -> _ScoreProbe:
        generator = torch.Generator().manual_seed(0)
        n_vocabulary = model.config.get_text_config().vocab_size
        prompt, *answers = (
            torch.randint(n_vocabulary, (length,), generator=generator).tolist() for length in (7, 5, 3, 4)
        )
        where = next(model.parameters()).device
        with evaluating(model):
            alone = [
                model(input_ids=torch.tensor([prompt + answer], device=where), use_cache=False) for answer in answers
            ]
        scores = torch.cat([output.logits.flatten() for output in alone])
        # Scores have no scale of their own, and the error of a sum grows with it.
        scale = max(1.0, float(scores.abs().max()))
        return cls(prompt, answers, scores, TOLERANCE.get(model.dtype, 1e-3) * scale, pad_id)

    @torch.no_grad()
    def flat_difference(self, model: Any) -> tuple[float, set[int]]:
        """Return the largest difference of a flat row's scores, and the sliding windows that its layers used."""
        flat = lay_out_scored([self.prompt] * len(self.answers), self.answers, self.pad_id)
        with evaluating(model):
            found = model(flat=to_device(flat, self.scores.device)).logits.flatten()
        return float((found - self.scores).abs().max()), flat["segments"].windows


def _add_flat_forward(inner: Any) -> None:
    own = inner.forward

    @functools.wraps(own.__func__)
    def flat_forward(self: Any, *args: Any, flat: dict[str, Any] | None = None, **options: Any) -> Any:
        if flat is None:
            return own(*args, **options)
        layers = self.base_model(
            input_ids=flat["input_ids"],
            position_ids=flat["position_ids"],
            attention_mask=no_mask(flat["input_ids"]),
            segments=flat["segments"],
            use_cache=False,
        )
        return SequenceClassifierOutputWithPast(logits=self.score(layers.last_hidden_state[0, flat["last"]]))

    replace_forward(inner, flat_forward)


def _without_padding(prompt: list[int], answer: list[int], pad_id: int) -> tuple[list[int], list[int]]:
    """Return prompt and answer up to the token at which the score is read."""
    whole = [*prompt, *answer]
    end = next((i + 1 for i in reversed(range(len(whole))) if whole[i] != pad_id), 1)
    return whole[: min(end, len(prompt))], whole[len(prompt) : end]
