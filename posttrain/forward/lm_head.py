"""The LM head on a CPU: one pass over the logits gives the targets' log-probabilities and their gradient.

With z the logits of a position, h its hidden state, W the head's weight and t the target, d log p(t) / dz = onehot(t) - p
does not depend on what comes after it, and so neither does d log p(t) / dh = (onehot(t) - p) W. Both are made while the
logits are at hand, and the backward pass only scales them by the incoming gradient, a number a position. TRL's kernel
(`trl.kernels.chunked_logprob`, made for GPUs) projects a second time there instead, and multiplies in fp32, as a CPU has no
product of bf16 matrices whose result is fp32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

TILE_BYTES = 256 * 2**20
"""Logits that stand in memory at once, where the head is not trained itself."""
KEPT_BYTES = 2**30
"""Their gradient that a trained head keeps for the backward pass; TRL's kernel takes as much for a tile of 1024 positions."""
CACHED_BYTES = 2**20
"""fp32 logits that a thread works on at once: as many as a core's cache holds."""


class _TargetLogps(torch.autograd.Function):
    """See `score_targets`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        names: frozenset[str],
        dtype: torch.dtype,
        learns: bool,
    ) -> tuple[Tensor | None, ...]:
        n, n_vocabulary = len(hidden), len(weight)
        of_hidden, of_weight = (learns and needed for needed in ctx.needs_input_grad[:2])
        learns = of_hidden or of_weight
        narrow, head = hidden.to(dtype), weight.to(dtype)
        log_probs, entropy, log_sum_sq_probs, mean_logits = (hidden.new_empty(n, dtype=torch.float32) for _ in range(4))
        is_top1 = torch.empty(n, dtype=torch.bool)
        d_hidden = torch.empty_like(narrow) if of_hidden else None
        n_tile = max(1, n if of_weight else min(n, TILE_BYTES // (n_vocabulary * dtype.itemsize)))
        tile_logits = narrow.new_empty(n_tile, n_vocabulary)
        n_cached = max(1, torch.get_num_threads() * CACHED_BYTES // (n_vocabulary * torch.float32.itemsize))
        for start in range(0, n, n_tile):
            tile = slice(start, min(start + n_tile, n))
            logits = torch.mm(narrow[tile], head.t(), out=tile_logits[: tile.stop - start])
            for first in range(tile.start, tile.stop, n_cached):
                at = slice(first, min(first + n_cached, tile.stop))
                part, target = logits[at.start - start : at.stop - start], targets[at, None]
                logps = torch.log_softmax(part, dim=-1, dtype=torch.float32)
                log_probs[at] = logps.gather(1, target)[:, 0]
                if "mean_logits" in names:
                    mean_logits[at] = part.mean(dim=-1, dtype=torch.float32)
                if "is_top1" in names:
                    is_top1[at] = part.argmax(dim=-1) == target[:, 0]
                if not learns and not names & {"entropy", "log_sum_sq_probs"}:
                    continue
                probs = logps.exp()
                if "entropy" in names:
                    entropy[at] = -torch.linalg.vecdot(probs, logps)
                if "log_sum_sq_probs" in names:
                    log_sum_sq_probs[at] = torch.linalg.vecdot(probs, probs).log()
                if learns:  # the logits' place is taken by d log p(target) / d logits
                    part.copy_(probs.neg_().scatter_add_(1, target, torch.ones_like(target, dtype=probs.dtype)))
            if d_hidden is not None:
                torch.mm(logits, head, out=d_hidden[tile])
        ctx.save_for_backward(d_hidden, *((narrow, tile_logits) if of_weight else (None, None)))
        ctx.dtypes = hidden.dtype, weight.dtype
        found = {
            "entropy": entropy,
            "log_sum_sq_probs": log_sum_sq_probs,
            "mean_logits": mean_logits,
            "is_top1": is_top1,
        }
        others = [value if name in names else None for name, value in found.items()]
        ctx.mark_non_differentiable(*(value for value in others if value is not None))
        return log_probs, *others

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden, hidden, d_logits = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        scale = gradient[:, None]
        of_hidden = None if d_hidden is None else (d_hidden * scale).to(hidden_dtype)
        of_weight = None
        if d_logits is not None:
            of_weight = (d_logits.t() @ (hidden * scale).to(d_logits.dtype)).to(weight_dtype)
        return of_hidden, of_weight, None, None, None, None


def score_targets(
    hidden: Tensor, weight: Tensor, targets: Tensor, names: frozenset[str]
) -> dict[str, Tensor | None] | None:
    """What TRL's fused head reports of each target, in fp32; of the fields, only `log_probs` has a gradient.

    Args:
        hidden: (T, width) in which the targets are predicted.
        weight: (vocabulary, width) of a head that neither adds a bias nor scales or caps its logits (`plain_head`).
        targets: (T,) token ids.
        names: fields wanted beside `log_probs`, in the words of `trl.trainer.utils.FusedCausalLMOutput`; the others are None.

    Returns:
        The fields, (T,) each; None where TRL's kernel is to be used: on a GPU, on a weight that is sharded at this moment, and
        where a head that is trained itself would keep too much.
    """
    if hidden.device.type != "cpu" or isinstance(weight, DTensor):
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    learns = torch.is_grad_enabled()
    if learns and weight.requires_grad and len(hidden) * len(weight) * dtype.itemsize > KEPT_BYTES:
        return None
    with torch.autocast("cpu", enabled=False):
        fields = _TargetLogps.apply(hidden, weight, targets, names, dtype, learns)
    return dict(zip(("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"), fields, strict=True))


def plain_head(fused_forward: Callable[..., Any]) -> frozenset[str] | None:
    """The fields that a head of TRL's reports beside `log_probs`; None where it scales or caps its logits.

    Written for TRL 1.16, and None where a release keeps its settings elsewhere.

    Args:
        fused_forward: what `trl.trainer.utils.add_fused_lm_head` makes.
    """
    settings = inspect.getclosurevars(fused_forward).nonlocals
    plain = {"logit_scale": 1.0, "temperature": 1.0, "cast_lm_head_to_fp32": False, "final_logit_softcapping": None}
    if "outputs" not in settings or any(name not in settings or settings[name] != plain[name] for name in plain):
        return None
    return frozenset(settings["outputs"]) - {"log_probs"}
