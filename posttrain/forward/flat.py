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
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
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
from posttrain.forward import lm_head
from posttrain.forward.attention import Segments, attention_name, no_mask, register_attention

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Largest accepted difference, in nats, between the two forwards on the probe's few tokens."""


@dataclass
class _FlatRow:
    """Tokens of a flat row that is being built."""

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    predicting: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def append(self, sequence: list[int], start: int, end: int, n_prompt: int) -> list[int]:
        """Append the tokens from start to end, and return the indices in `targets` of the response tokens they predict."""
        offset = len(self.input_ids) - start
        self.input_ids.extend(sequence[start:end])
        self.position_ids.extend(range(start, end))
        first = max(start, n_prompt - 1)
        self.predicting.extend(range(offset + first, offset + end))
        self.targets.extend(sequence[first + 1 : end + 1])
        return list(range(len(self.targets) - max(0, end - first), len(self.targets)))

    def append_group(
        self, prompt: list[int], responses: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[int, ...], list[list[int]]]:
        """Append a prompt and distinct responses to it.

        Returns:
            The lengths of the prefix and of each branch; and for each response the indices of its tokens in `targets`.
        """
        sequences = [[*prompt, *response] for response in responses]
        n_prefix = 0 if len(sequences) == 1 else max(0, _n_common(sequences) - 1)
        shared = self.append(sequences[0], 0, n_prefix, len(prompt))
        indices = [shared + self.append(one, n_prefix, len(one) - 1, len(prompt)) for one in sequences]
        return (n_prefix, *(len(one) - 1 - n_prefix for one in sequences)), indices


def lay_out(prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> dict[str, Any]:
    """Lay out n responses, each after its prompt, as one flat row of N tokens without padding.

    The last token of each sequence is not part of the row: it predicts nothing, and no other token sees it.

    Returns:
        input_ids, position_ids: (1, N).
        segments: which of the N tokens see which.
        predicting: (T,) positions whose next token belongs to a response.
        targets: (T,) that next token.
        rows: (n, longest response) index in `targets` of each response token; padded with 0.
        mask: (n, longest response) False where `rows` is padding.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(i)
    row, lengths = _FlatRow(), []
    rows = torch.zeros(len(responses), max(map(len, responses)), dtype=torch.long)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    for members in groups.values():
        distinct = list(dict.fromkeys(tuple(responses[i]) for i in members))
        group_lengths, indices = row.append_group(prompts[members[0]], distinct)
        lengths.append(group_lengths)
        of_response = dict(zip(distinct, indices, strict=True))
        for i in members:
            places = of_response[tuple(responses[i])]
            rows[i, : len(places)] = torch.tensor(places)
            mask[i, : len(places)] = True
    return {
        "input_ids": torch.tensor([row.input_ids]),
        "position_ids": torch.tensor([row.position_ids]),
        "segments": Segments(tuple(lengths)),
        "predicting": torch.tensor(row.predicting),
        "targets": torch.tensor(row.targets),
        "rows": rows,
        "mask": mask,
    }


def _n_common(sequences: list[list[int]]) -> int:
    """Return the length of the sequences' longest common prefix."""
    smallest, largest = min(sequences), max(sequences)  # all others lie between these two
    return next((i for i, (a, b) in enumerate(zip(smallest, largest, strict=False)) if a != b), len(smallest))


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


def use_flat_batches(model: PreTrainedModel | PeftModel, section: ModelSection) -> str | None:
    """Make a model accept the batches of `FlatCollator` (`model(flat=..., fused_lm_head=True)`), if it supports them.

    Returns:
        None, or the reason why the model keeps TRL's padded batches.
    """
    register_attention()
    fused_head_kernel()
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not forward_accepts(inner, "fused_lm_head"):
        add_fused_lm_head(inner)
    if reason := _why_padded(model, section):
        return reason
    if "posttrain" not in attention_implementation(inner):
        inner.set_attn_implementation(attention_name(section.attention, inner.device))
    if not forward_accepts(inner, "flat"):
        _add_flat_forward(inner)
    try:
        difference = _probe(model)
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"the model cannot compute them ({type(error).__name__}: {str(error).splitlines()[0]})"
    if not difference <= PROBE_TOLERANCE.get(inner.dtype, 1e-3):
        return f"in a trial they differed from the model's own forward pass by {difference:.2g} nats"
    return None


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


def _why_padded(model: Any, section: ModelSection) -> str | None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if section.layout == "padded":
        return "model.layout is set to padded"
    if section.attention in ("eager", "flash_attention_2"):
        return f"model.attention {section.attention} does not support segments"
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return "the adapter puts virtual tokens before the prompt"
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return f"the model has layers without full attention ({', '.join(sorted(kinds)) or 'sliding window'})"
    if hasattr(config, "output_router_logits"):
        return "the load-balancing loss of a mixture of experts depends on the layout of the batch"
    return None


def _add_flat_forward(inner: Any) -> None:
    fused = inner.forward
    names = plain_head_fields(fused.__func__)

    @functools.wraps(fused.__func__)
    def flat_forward(
        self: Any, *args: Any, flat: dict[str, Any] | None = None, fused_lm_head: bool = False, **options: Any
    ) -> Any:
        if flat is None:
            return fused(*args, fused_lm_head=fused_lm_head, **options)
        backbone = self.base_model(
            input_ids=flat["input_ids"],
            position_ids=flat["position_ids"],
            attention_mask=no_mask(flat["input_ids"]),
            segments=flat["segments"],
            use_cache=False,
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
        return FusedCausalLMOutput(loss=-fields["log_probs"].mean(), label_mask=flat["mask"], **table)

    replace_forward(inner, flat_forward)


@torch.no_grad()
def _probe(model: Any) -> float:
    """Return the largest difference, in nats per response, between the flat and the model's own forward on a small group."""
    generator = torch.Generator().manual_seed(0)
    n_vocabulary = model.config.get_text_config().vocab_size
    prompt, *responses = (
        torch.randint(n_vocabulary, (length,), generator=generator).tolist() for length in (7, 5, 3, 4)
    )
    flat = lay_out([prompt] * len(responses), responses)
    where = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        found = model(flat=to_device(flat, where), fused_lm_head=True).log_probs.float().sum(dim=1)
        for i, response in enumerate(responses):
            logits = model(input_ids=torch.tensor([prompt + response], device=where), use_cache=False).logits[0].float()
            logps = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
            found[i] -= logps.gather(1, torch.tensor(response, device=where)[:, None]).sum()
    finally:
        model.train(was_training)
    return float(found.abs().max())


def to_device(flat: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on a device."""
    return {name: part.to(device) if isinstance(part, Tensor) else part for name, part in flat.items()}
