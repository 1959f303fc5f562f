"""One forward for SFT, reference scoring, DPO and evaluation in which nothing is computed twice and nothing is padded.

A batch is one flat row. Responses to the same prompt form a group `[prefix | branch | branch ...]`, where the prefix is
what the group's sequences have in common, and every branch sees the prefix and itself only. The LM head runs on the
positions that predict a response's token, and on no others.

It plugs in under TRL's trainers at the model's forward: the same fields come back as from TRL's own, one row a response,
so every loss, metric and callback stays TRL's. Written for TRL 1.16 (`trl.trainer.utils.add_fused_lm_head`).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from posttrain.config import ModelSection
from posttrain.forward import lm_head
from posttrain.forward.attention import Segments, attention_name, no_mask

FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Nats by which the two forwards may differ on the probe's few tokens."""


def lay_out(prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> dict[str, Any]:
    """A batch of n responses, each after its prompt, as one flat row of N tokens without padding.

    Returns:
        input_ids, position_ids: (1, N).
        segments: which of the N tokens see which.
        predicting: (T,) the positions whose next token belongs to a response.
        targets: (T,) that token.
        rows: (n, longest response) for every response's token its place among the T; padded with 0.
        mask: (n, longest response) True where `rows` is no padding.

    A sequence's last token is left out of the N: nothing follows that it could predict, or that could see it.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(i)
    input_ids: list[int] = []
    position_ids: list[int] = []
    predicting: list[int] = []
    targets: list[int] = []
    lengths = []
    rows = torch.zeros(len(responses), max(map(len, responses)), dtype=torch.long)
    mask = torch.zeros_like(rows, dtype=torch.bool)

    def append(sequence: list[int], start: int, end: int, n_prompt: int) -> list[int]:
        """Places of the predicted response tokens, once the sequence's part from start to end stands in the row."""
        at = len(input_ids) - start
        input_ids.extend(sequence[start:end])
        position_ids.extend(range(start, end))
        first = max(start, n_prompt - 1)
        predicting.extend(range(at + first, at + end))
        targets.extend(sequence[first + 1 : end + 1])
        return list(range(len(targets) - max(0, end - first), len(targets)))

    for members in groups.values():
        prompt = prompts[members[0]]
        distinct = {tuple(responses[i]): None for i in members}
        sequences = [[*prompt, *response] for response in distinct]
        n_prefix = 0 if len(sequences) == 1 else max(0, _n_common(sequences) - 1)
        shared = append(sequences[0], 0, n_prefix, len(prompt))
        places = {}
        for response, sequence in zip(distinct, sequences, strict=True):
            places[response] = shared + append(sequence, n_prefix, len(sequence) - 1, len(prompt))
        lengths.append((n_prefix, *(len(sequence) - 1 - n_prefix for sequence in sequences)))
        for i in members:
            place = places[tuple(responses[i])]
            rows[i, : len(place)] = torch.tensor(place)
            mask[i, : len(place)] = True
    return {
        "input_ids": torch.tensor([input_ids]),
        "position_ids": torch.tensor([position_ids]),
        "segments": Segments(tuple(lengths)),
        "predicting": torch.tensor(predicting),
        "targets": torch.tensor(targets),
        "rows": rows,
        "mask": mask,
    }


def _n_common(sequences: list[list[int]]) -> int:
    """How many tokens all the sequences begin with."""
    shortest, longest = min(sequences), max(sequences)  # all others lie between these two
    return next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))


@dataclass(frozen=True)
class FlatCollator:
    """Makes a trainer's batches: `tokenise_pairs`' rows with their reference, or `tokenise_completions`', as one flat row.

    What TRL itself looks at, `input_ids`, `labels` and `completion_mask`, has one row a response (all chosen ones first),
    with a single prompt token before it.
    """

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = "chosen_ids" in examples[0]
        if pairs:
            prompts = [example["prompt_ids"] for example in examples] * 2
            responses = [example[which] for which in ("chosen_ids", "rejected_ids") for example in examples]
        else:
            ends = [sum(label == -100 for label in example["labels"]) for example in examples]
            prompts = [example["input_ids"][:end] for example, end in zip(examples, ends, strict=True)]
            responses = [example["input_ids"][end:] for example, end in zip(examples, ends, strict=True)]
        flat = lay_out(prompts, responses)
        labels = torch.where(flat["mask"], flat["targets"][flat["rows"]], -100)
        labels = torch.nn.functional.pad(labels, (1, 0), value=-100)
        batch = {
            "input_ids": labels.clamp(min=0),
            "attention_mask": torch.ones_like(flat["input_ids"]),  # TRL counts its tokens by it
            "flat": flat,
        }
        if not pairs:
            return {**batch, "labels": labels}
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            batch[name] = torch.tensor([example[name] for example in examples])
        return {**batch, "completion_mask": (labels != -100).long()}


def use_flat_batches(model: PreTrainedModel | PeftModel, section: ModelSection) -> str | None:
    """Lets a model take `FlatCollator`'s batches, `model(flat=..., fused_lm_head=True)`, where it is able to.

    Returns:
        None, or why the model keeps TRL's padded batches.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not _has_fused_head(inner):
        add_fused_lm_head(inner)
    if reason := _why_padded(model, section):
        return reason
    if "posttrain" not in inner.config._attn_implementation:
        inner.set_attn_implementation(attention_name(section.attention, inner.device))
    if inner.forward.__func__.__name__ != "flat_forward":
        _add_flat_forward(inner)
    try:
        difference = _probe(model)
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"the model does not take them ({type(error).__name__}: {str(error).splitlines()[0]})"
    if not difference <= PROBE_TOLERANCE.get(inner.dtype, 1e-3):
        return f"on a trial they differ from the model's own forward by {difference:.2g} nats"
    return None


@functools.cache
def announce(reason: str | None) -> None:
    """Says once a process and reason how batches are made.

    Args:
        reason: what `use_flat_batches` returned.
    """
    if reason is None:
        print("Batches: flat; each prompt is computed once, nothing is padded, attention goes by segments")
    else:
        print(f"Batches: padded, by TRL's own path, which takes longer: {reason}")


def _why_padded(model: Any, section: ModelSection) -> str | None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if section.layout == "padded":
        return "model.layout asks for it"
    if section.attention in ("eager", "flash_attention_2"):
        return f"model.attention {section.attention} knows no segments"
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return "the adapter puts virtual tokens before the prompt"
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return f"the model has layers without full attention ({', '.join(sorted(kinds)) or 'sliding window'})"
    if hasattr(config, "output_router_logits"):
        return "the balance loss of a mixture of experts depends on the batch"
    return None


def _has_fused_head(inner: Any) -> bool:
    return getattr(inner.forward, "__func__", inner.forward).__code__.co_name in ("_fused_forward", "flat_forward")


def _add_flat_forward(inner: Any) -> None:
    fused = inner.forward
    names = lm_head.plain_head(fused.__func__)

    @functools.wraps(fused.__func__)
    def flat_forward(self: Any, *args: Any, flat: dict[str, Any] | None = None, **options: Any) -> Any:
        if flat is None:
            return fused(*args, **options)
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
            # TRL's head, with every scaling it knows, on these positions alone.
            alone = types.SimpleNamespace(
                base_model=lambda **_: types.SimpleNamespace(last_hidden_state=hidden),
                get_output_embeddings=lambda: head,
            )
            scored = fused.__func__(alone, shift_labels=flat["targets"][None], fused_lm_head=True)
            fields = {name: None if (field := getattr(scored, name)) is None else field[0] for name in FIELDS}
        table = {
            name: None if field is None else field[flat["rows"]].masked_fill(~flat["mask"], 0)
            for name, field in fields.items()
        }
        return FusedCausalLMOutput(loss=-fields["log_probs"].mean(), label_mask=flat["mask"], **table)

    flat_forward.__name__ = "flat_forward"
    inner.forward = types.MethodType(flat_forward, inner)


@torch.no_grad()
def _probe(model: Any) -> float:
    """Greatest difference, in nats of a response, between the flat forward and the model's own on a small group."""
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
    """The same batch on a device."""
    return {name: part.to(device) if isinstance(part, Tensor) else part for name, part in flat.items()}
