"""One forward pass for SFT, reference scoring, DPO and evaluation, without padding and without repeated computation.

A batch is one flat row. Responses to the same prompt form a group `[prefix | branch | branch ...]`: the prefix is what the
group's sequences have in common, and each branch sees the prefix and itself only. The LM head runs only on the positions
that predict a token of a response.

The forward replaces the model's own under TRL's trainers. It returns the same fields as TRL's fused head, with one row per
response, so that losses, metrics and callbacks remain TRL's (`trl.trainer.utils.add_fused_lm_head`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from posttrain.compat.transformers_internals import attention_implementation
from posttrain.compat.trl_internals import (
    forward_accepts,
    fused_head_kernel,
    plain_head_fields,
    replace_forward,
    score_positions,
)
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.forward import lm_head
from posttrain.forward.attention import BY_BLOCKS, attention_name, no_mask, register_attention
from posttrain.forward.flat_row import lay_out, pad_row
from posttrain.forward.flex import row_length
from posttrain.forward.fused.install import announce_fused, fuse, unfuse
from posttrain.forward.layout_support import expected_windows, why_padded
from posttrain.forward.probe import Probe
from posttrain.forward.routers import balance_loss, stop_router_outputs


@dataclass(frozen=True)
class Examples:
    """The rows that a batch was made of."""

    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class FlatCollator:
    """Collate rows of `tokenise_completions`, or of `tokenise_pairs` with reference log-probabilities, into one flat row.

    `input_ids`, `labels` and `completion_mask`, which TRL reads itself, have one row per response (all chosen responses
    first), preceded by a single prompt token.
    """

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = "chosen_ids" in examples[0]
        if pairs:
            prompts = [example["prompt_ids"] for example in examples] * 2
            responses = [example[which] for which in ("chosen_ids", "rejected_ids") for example in examples]
        else:
            ends = [next(i for i, label in enumerate(example["labels"]) if label != -100) for example in examples]
            prompts = [example["input_ids"][:end] for example, end in zip(examples, ends, strict=True)]
            responses = [example["input_ids"][end:] for example, end in zip(examples, ends, strict=True)]
        flat = lay_out(prompts, responses)
        if not pairs:
            flat = _only_trained(flat, [example["labels"][end:] for example, end in zip(examples, ends, strict=True)])
        flat["examples"] = Examples(tuple(examples))
        labels = torch.where(flat["mask"], flat["targets"][flat["rows"]], -100)
        labels = torch.nn.functional.pad(labels, (1, 0), value=-100)
        batch = {
            "input_ids": labels.clamp(min=0),
            "attention_mask": torch.ones_like(flat["input_ids"]),  # TRL counts tokens by it
            "flat": flat,
        }
        if not pairs:
            return {**batch, "labels": labels}
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            batch[name] = torch.tensor([example[name] for example in examples])
        return {**batch, "completion_mask": (labels != -100).long()}


def _only_trained(flat: dict[str, Any], labels: Sequence[list[int]]) -> dict[str, Any]:
    """Return a layout without the targets whose label is -100, such as a user's turn between two answers."""
    if not any(-100 in row for row in labels):
        return flat
    mask = flat["mask"].clone()
    for i, row in enumerate(labels):
        mask[i, : len(row)] &= torch.tensor(row) != -100
    used, places = flat["rows"][mask].unique(return_inverse=True)
    rows = torch.zeros_like(flat["rows"])
    rows[mask] = places
    return {
        **flat,
        "mask": mask,
        "rows": rows,
        "targets": flat["targets"][used],
        "predicting": flat["predicting"][used],
    }


def use_flat_batches(model: PreTrainedModel | PeftModel, section: ModelSection, *, trains: bool = False) -> str | None:
    """Make a model accept the batches of `FlatCollator` (`model(flat=..., fused_lm_head=True)`), if it supports them.

    Args:
        trains: whether to try the backward pass too.

    Returns:
        None, or the reason why the model keeps TRL's padded batches.

    Raises:
        UserError: `model.layout: flat` or `model.attention: flex` is set for a model without flat batches; or the model's
            log-probabilities are wrong in padded batches too.
    """
    register_attention()
    fused_head_kernel()
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not forward_accepts(inner, "fused_lm_head"):
        add_fused_lm_head(inner)
    stop_router_outputs(inner)
    own = Probe.of(model, section)
    reason = _try_flat(model, inner, section, own, trains=trains)
    if reason is None:
        return None
    for name, setting, value in (("layout", section.layout, "flat"), ("attention", section.attention, "flex")):
        if setting == value:
            raise UserError(
                f"model.{name}: {value} needs flat batches, which this model does not support: {reason}: set model.{name} to auto"
            )
    own.check_padded(model)
    return reason


def _try_flat(model: Any, inner: Any, section: ModelSection, own: Probe, *, trains: bool) -> str | None:
    """Return None if the flat forward works and is in use, or why it does not."""
    if reason := why_padded(model, section):
        return reason
    before = attention_implementation(inner)
    if "posttrain" not in before:
        inner.set_attn_implementation(attention_name(section.attention, inner.device))
    if not forward_accepts(inner, "flat"):
        _add_flat_forward(inner)
    try:
        difference, windows = own.flat_difference(model)
        gradient = own.gradient_difference(model) if trains else 0.0
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, NotImplementedError) as error:
        reason = f"the model cannot compute them ({type(error).__name__}: {str(error).splitlines()[0]})"
    else:
        if not difference <= own.tolerance:
            reason = f"in a trial they differed from the model's own forward pass by {difference:.2g} nats"
        elif not gradient <= 1:
            reason = f"in a trial their gradient differed from the model's own by {gradient:.2g} times what is accepted"
        elif not (changed := own.difference(Probe.of(model, section))) <= own.tolerance:
            reason = f"its attention by segments changes the model's own forward pass by {changed:.2g} nats"
        elif missing := expected_windows(inner.config) - windows:
            reason = f"the model does not pass its sliding window of {min(missing)} tokens to the attention"
    if reason and "posttrain" not in before:
        inner.set_attn_implementation(before)
    if reason is None:
        _fuse_layers(model, own, trains=trains)
    return reason


def _fuse_layers(model: Any, own: Probe, *, trains: bool) -> None:
    """Compute the layers of a LoRA model in fewer operations, unless a trial shows other log-probabilities."""
    fused = fuse(model)
    if fused is None:
        return
    difference, _ = own.flat_difference(model)
    gradient = own.gradient_difference(model) if trains else 0.0
    if not (difference <= own.tolerance and gradient <= 1) or any(shared.is_waiting for shared in fused.shared):
        unfuse(model)
        announce_fused(
            f"none, because in a trial they differed by {difference:.2g} nats, and their gradient "
            f"by {gradient:.2g} times what is accepted"
        )
        return
    announce_fused(fused.describe())


@functools.cache
def announce(reason: str | None) -> None:
    """Print how batches are made, once per process and reason.

    Args:
        reason: what `use_flat_batches` returned.
    """
    if reason is None:
        print("Batches: flat (each prompt is computed once, no padding, attention by segments)")
    else:
        print(f"Batches: padded as in TRL, which is slower: {reason}")


def _add_flat_forward(inner: Any) -> None:
    fused = inner.forward
    names = plain_head_fields(fused.__func__)

    @functools.wraps(fused.__func__)
    def flat_forward(
        self: Any, *args: Any, flat: dict[str, Any] | None = None, fused_lm_head: bool = False, **options: Any
    ) -> Any:
        if flat is None:
            return fused(*args, fused_lm_head=fused_lm_head, **options)
        router = {"output_router_logits": True} if options.get("output_router_logits") else {}
        if flat["input_ids"].is_cuda and attention_implementation(self) == BY_BLOCKS and not router:
            flat = pad_row(flat, row_length(flat["input_ids"].shape[1]))
        backbone = self.base_model(
            input_ids=flat["input_ids"],
            position_ids=flat["position_ids"],
            attention_mask=no_mask(flat["input_ids"]),
            segments=flat["segments"],
            use_cache=False,
            **router,
        )
        hidden = backbone.last_hidden_state[:, flat["predicting"]]
        head = self.get_output_embeddings()
        fields: dict[str, Any] | None = None
        if names is not None and head.bias is None:
            fields = lm_head.score_targets(hidden[0], head.weight, flat["targets"], names)
        if fields is None:
            scored = score_positions(fused.__func__, head, hidden, flat["targets"][None])
            fields = {name: None if (value := getattr(scored, name)) is None else value[0] for name in lm_head.FIELDS}
        table = {
            name: None if value is None else value[flat["rows"]].masked_fill(~flat["mask"], 0)
            for name, value in fields.items()
        }
        aux_loss = balance_loss(self, backbone.router_logits) if router else None
        return FusedCausalLMOutput(
            loss=-fields["log_probs"].mean(), label_mask=flat["mask"], aux_loss=aux_loss, **table
        )

    replace_forward(inner, flat_forward)
