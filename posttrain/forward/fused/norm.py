"""RMSNorm with a frozen weight, forward and backward in few operations.

With r = 1 / sqrt(mean(x^2) + eps), n = x r, y = n w and g = dy w:  dx = r (g - n mean(g n)).

Source: Zhang and Sennrich 2019, equation 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm


class _RmsNorm(torch.autograd.Function):
    """On a CPU, where PyTorch's own is made of single operations."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        wide = inputs if inputs.dtype == torch.float64 else inputs.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.addcmul(norm.new_tensor(epsilon), norm, norm, value=1 / inputs.shape[-1]).rsqrt_()
        normed = wide * scale
        ctx.save_for_backward(normed, scale, weight)
        ctx.dtype = inputs.dtype
        return (normed * weight).to(inputs.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normed, scale, weight = ctx.saved_tensors
        found = gradient.to(normed.dtype) * weight
        along = torch.linalg.vecdot(found, normed)[..., None]
        return found.addcmul_(normed, along, value=-1 / normed.shape[-1]).mul_(scale).to(ctx.dtype), None, None


def apply_rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + epsilon) * weight over the last dimension; the weight gets no gradient."""
    if inputs.device.type != "cpu":
        return rms_norm(inputs, weight.shape, weight, epsilon).to(inputs.dtype)
    normed: Tensor = _RmsNorm.apply(inputs, weight, epsilon)
    return normed
