"""FlexAttention, compiled once for each kind of layer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from posttrain.compat.torch_internals import CompilationRefused, compile_for_sizes
from posttrain.errors import UserError
from posttrain.forward.block_mask import BLOCK

MIN_TOKENS = 2 * BLOCK
"""Smallest row. PyTorch compiles separately for a single block."""


@dataclass(frozen=True)
class FlexKind:
    """What FlexAttention is compiled for. Each kind has one compiled function, for rows of every length."""

    has_gradient: bool
    n_heads: int
    n_key_heads: int
    width: int
    dtype: torch.dtype
    window: int | None
    softcap: float | None
    has_sinks: bool


@functools.cache
def compiled_flex(kind: FlexKind, backend: str = "inductor") -> Any:
    """Return FlexAttention compiled for a kind of layer.

    Another compilation than for a changed length raises an error (`fullgraph`). Without it, PyTorch gives up after some
    compilations and computes all scores of a row, which takes its square in memory.
    """
    own_limit: dict[str, Any] = {"recompile_limit": 2, "isolate_recompiles": True}
    return torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend, **own_limit)


def row_length(n: int) -> int:
    """Return the length to which a row of n tokens is padded: whole blocks, and at least two."""
    return max(MIN_TOKENS, -(-n // BLOCK) * BLOCK)


def in_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return all three in the precision of autocast, else in that of the values. Rotary embeddings can leave fp32 behind."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


@contextlib.contextmanager
def _no_further_compilation() -> Iterator[None]:
    """Say what it means if a layer would be compiled once more than `compiled_flex` allows."""
    try:
        yield
    except CompilationRefused as error:
        raise UserError(
            "model.attention: FlexAttention would have to be compiled again for the same layer, and PyTorch would compute all "
            "scores of a row instead: set model.attention to sdpa"
        ) from error


def attend_by_blocks(
    inputs: tuple[Tensor, Tensor, Tensor], mask: BlockMask, layer: Any, backend: str | None = None
) -> Tensor:
    """Run FlexAttention, compiled on a GPU.

    Args:
        inputs: query, key and value, of one dtype.
        layer: scale, window, soft cap and sinks of the layer.
        backend: of `torch.compile`; None: inductor on a GPU, and no compilation on a CPU.
    """
    query, key, value = inputs
    options: dict[str, Any] = {"block_mask": mask, "enable_gqa": query.shape[1] != key.shape[1], "scale": layer.scale}
    if (softcap := layer.softcap) is not None:
        options["score_mod"] = lambda score, *_: softcap * torch.tanh(score / softcap)
    attend: Any = flex_attention
    if backend is not None or query.is_cuda:
        gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        n_heads, n_key_heads, width = query.shape[1], key.shape[1], query.shape[-1]
        kind = FlexKind(
            gradient, n_heads, n_key_heads, width, query.dtype, layer.window, softcap, layer.sinks is not None
        )
        attend = compiled_flex(kind, backend or "inductor")
        for tensor in (query, key, value):
            compile_for_sizes(tensor, (0, 1, 3))
    # A compiled function is valid for one setting of autocast.
    with _no_further_compilation(), torch.autocast(query.device.type, enabled=False):
        if layer.sinks is None:
            result: Tensor = attend(query, key, value, **options)
            return result
        result, log_sum = attend(query, key, value, return_lse=True, **options)
        # Softmax with one more logit s: the other weights shrink by exp(l) / (exp(l) + exp(s)) = sigmoid(l - s).
        return result * torch.sigmoid(log_sum - layer.sinks.view(1, -1, 1))[..., None].to(result.dtype)
