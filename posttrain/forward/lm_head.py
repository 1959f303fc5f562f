"""The LM head: one pass over the logits computes the targets' log-probabilities and their gradient.

Let z be the logits of a position, h its hidden state, W the head's weight and t the target. Then
d log p(t) / dz = onehot(t) - p and d log p(t) / dh = (onehot(t) - p) W do not depend on later computations. Both are computed
in the forward pass while the logits are in memory. The backward pass only scales them by the incoming gradient, one number
per position. TRL's kernel (`trl.kernels.chunked_logprob`) computes the logits again in its backward pass. On a CPU it also
multiplies in fp32, as no CPU kernel multiplies bf16 matrices into an fp32 result. On a GPU a trained head is left to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

TILE_BYTES = 256 * 2**20
"""Size of the logits that are in memory at once if the head is not trained."""
KEPT_BYTES = 2**30
"""Largest gradient of the logits to keep for the backward pass of a trained head. TRL's kernel needs as much for 1024 positions."""
CACHED_BYTES = 2**20
"""Size of the fp32 logits that a thread processes at once, chosen to fit into a core's cache."""
FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""Fields that the head returns for each target; the names of `trl.trainer.utils.FusedCausalLMOutput`."""


@dataclass(frozen=True)
class _TargetFields:
    """Buffers of T positions for the fields of each target, in fp32."""

    names: frozenset[str]
    log_probs: Tensor
    entropy: Tensor
    log_sum_sq_probs: Tensor
    mean_logits: Tensor
    is_top1: Tensor

    @classmethod
    def empty(cls, n: int, names: frozenset[str], device: torch.device) -> _TargetFields:
        """Return buffers that are not filled yet."""
        log_probs, entropy, log_sum_sq_probs, mean_logits = (torch.empty(n, device=device) for _ in range(4))
        is_top1 = torch.empty(n, dtype=torch.bool, device=device)
        return cls(names, log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1)

    def fill(self, at: slice, logits: Tensor, targets: Tensor, learns: bool) -> None:
        """Fill the positions `at` from their logits.

        Args:
            logits: (positions, vocabulary); if `learns`, overwritten by d log p(target) / d logits.
            targets: (positions, 1) token ids.
        """
        names = self.names
        logps = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        self.log_probs[at] = logps.gather(1, targets)[:, 0]
        if "mean_logits" in names:
            self.mean_logits[at] = logits.mean(dim=-1, dtype=torch.float32)
        if "is_top1" in names:
            self.is_top1[at] = logits.argmax(dim=-1) == targets[:, 0]
        if not learns and not names & {"entropy", "log_sum_sq_probs"}:
            return
        probs = logps.exp()
        if "entropy" in names:
            self.entropy[at] = -torch.linalg.vecdot(probs, logps)
        if "log_sum_sq_probs" in names:
            self.log_sum_sq_probs[at] = torch.linalg.vecdot(probs, probs).log()
        if learns:
            logits.copy_(probs.neg_().scatter_add_(1, targets, torch.ones_like(targets, dtype=probs.dtype)))

    def optional(self) -> list[Tensor | None]:
        """Return the fields besides `log_probs`, in the order of `FIELDS`; None for those that were not requested."""
        return [getattr(self, name) if name in self.names else None for name in FIELDS[1:]]


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
        fields = _TargetFields.empty(n, names, hidden.device)
        d_hidden = torch.empty_like(narrow) if of_hidden else None
        # A CPU turns a tile into fp32 in small parts, a GPU at once.
        itemsize = dtype.itemsize if hidden.device.type == "cpu" else torch.float32.itemsize
        n_tile = max(1, n if of_weight else min(n, TILE_BYTES // (n_vocabulary * itemsize)))
        tile_logits = narrow.new_empty(n_tile, n_vocabulary)
        n_cached = n_tile
        if hidden.device.type == "cpu":
            n_cached = max(1, torch.get_num_threads() * CACHED_BYTES // (n_vocabulary * torch.float32.itemsize))
        for start in range(0, n, n_tile):
            tile = slice(start, min(start + n_tile, n))
            logits = torch.mm(narrow[tile], head.t(), out=tile_logits[: tile.stop - start])
            for first in range(tile.start, tile.stop, n_cached):
                at = slice(first, min(first + n_cached, tile.stop))
                fields.fill(at, logits[at.start - start : at.stop - start], targets[at, None], learns)
            if d_hidden is not None:
                torch.mm(logits, head, out=d_hidden[tile])
        ctx.save_for_backward(d_hidden, *((narrow, tile_logits) if of_weight else (None, None)))
        ctx.dtypes = hidden.dtype, weight.dtype
        others = fields.optional()
        ctx.mark_non_differentiable(*(value for value in others if value is not None))
        return fields.log_probs, *others

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
    """Return the fields of TRL's fused head for each target, in fp32. Only `log_probs` has a gradient.

    Args:
        hidden: (T, width) hidden states of the positions that predict the targets.
        weight: (vocabulary, width) of a head without bias, scale or soft cap (`plain_head_fields`).
        targets: (T,) token ids.
        names: which of `FIELDS` to compute besides `log_probs`; the others are None.

    Returns:
        The fields, (T,) each. None if TRL's kernel must be used: for a sharded weight, for a trained head on a GPU, and for
        one on a CPU whose gradient would need too much memory.
    """
    kind = hidden.device.type
    if isinstance(weight, DTensor):
        return None
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    learns = torch.is_grad_enabled()
    trained = learns and weight.requires_grad
    if trained and (kind != "cpu" or len(hidden) * len(weight) * dtype.itemsize > KEPT_BYTES):
        return None
    with torch.autocast(kind, enabled=False):
        fields = _TargetLogps.apply(hidden, weight, targets, names, dtype, learns)
    return dict(zip(FIELDS, fields, strict=True))
