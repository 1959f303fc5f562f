"""Rotary position embeddings of queries and keys, forward and backward in few operations.

A rotation by the angles of each position turns (a, b) into (a cos - b sin, b cos + a sin). Its gradient is the rotation by the
negative angles.

Source: Su et al. 2021, equation 34, in the layout of Llama: a and b are the halves of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = heads.shape[-1] // 2
    turned = heads * cos
    turned[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-direction)
    turned[..., half:].addcmul_(heads[..., :half], sin[..., half:], value=direction)
    return turned


class _Rotary(torch.autograd.Function):
    """See `apply_rotary`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _rotate(query, cos, sin, 1), _rotate(key, cos, sin, 1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_query: Tensor, of_key: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotate(of_query, cos, sin, -1), _rotate(of_key, cos, sin, -1), None, None


def apply_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Return queries and keys turned by the angles of their positions, as transformers' `apply_rotary_pos_emb` does.

    Args:
        query, key: (batch, heads, length, width).
        cos, sin: (batch, length, width), the same in both halves of the width.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    turned: tuple[Tensor, Tensor] = _Rotary.apply(query, key, cos, sin)
    return turned


def with_fallback(own: Any) -> Any:
    """Return `apply_rotary` for where it holds, else a model family's own function: mixed precisions, part of a head."""

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        plain = not args and not kwargs and query.shape[-1] == key.shape[-1] == cos.shape[-1] and cos.ndim == 3
        if plain and query.dtype == key.dtype == cos.dtype and not cos.requires_grad:
            return apply_rotary(query, key, cos, sin)
        return own(query, key, cos, sin, *args, **kwargs)

    return rotate


@torch.no_grad()
def rotates_halves(own: Any) -> bool:
    """Return whether a model family's own function computes what `apply_rotary` does."""
    generator = torch.Generator().manual_seed(0)
    query, key, angles = (torch.randn(1, n, 3, 8, generator=generator) for n in (2, 1, 1))
    cos, sin = (of(torch.cat((angles[0, :, :, :4],) * 2, dim=-1)) for of in (torch.cos, torch.sin))
    try:
        expected = own(query, key, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    found = apply_rotary(query, key, cos, sin)
    return len(expected) == 2 and all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True)
    )
