"""Products of LoRA layers, with a backward pass of their own.

A LoRA layer is y = x W' + s (x A') B' with a frozen W. Layers that read the same input (query, key and value; gate and up) share
the product with their A matrices. No scaled, added or cast copy of a result is made on the way:

    h  = x [A1; A2; ...]'           one product for all layers
    yi = x Wi' + si hi Bi'          added in place
    gi = si dyi Bi,   dBi = si dyi' hi,   d[A1; A2; ...] = [g1 g2 ...]' x,   dx = sum_i dyi Wi + [g1 g2 ...] [A1; A2; ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from posttrain.forward.fused.products import product

LONG = 1024


@dataclass(frozen=True)
class FrozenPart:
    """What LoRA layers that read the same input multiply it with and do not train."""

    weights: tuple[Tensor, ...]
    """(outputs, inputs) each."""
    biases: tuple[Tensor | None, ...]
    scales: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class _Layers:
    """LoRA layers that read the same input, in the precision of the computation."""

    frozen: FrozenPart
    lora_a: Tensor
    """(sum of the ranks, inputs)."""
    lora_b: tuple[Tensor, ...]
    """(outputs, rank) each."""

    @classmethod
    def of(cls, frozen: FrozenPart, adapters: Sequence[Tensor], dtype: torch.dtype) -> _Layers:
        """Return the layers with these A matrices, followed by the B matrices."""
        n = len(frozen)
        stacked = adapters[0] if n == 1 else torch.cat(tuple(adapters[:n]))
        return cls(frozen, stacked.to(dtype), tuple(matrix.to(dtype) for matrix in adapters[n:]))

    def _split(self, hidden: Tensor) -> Sequence[Tensor]:
        """Return each layer's columns of h."""
        parts: Sequence[Tensor] = hidden.split([matrix.shape[1] for matrix in self.lora_b], dim=1)
        return parts

    def forward(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return h, and the output of each layer, from the (n, inputs) rows."""
        hidden = torch.mm(rows, self.lora_a.t())
        outputs = []
        for i, part in enumerate(self._split(hidden)):
            output = product(rows, self.frozen.weights[i])
            if (bias := self.frozen.biases[i]) is not None:
                output += bias
            outputs.append(output.addmm_(part, self.lora_b[i].t(), alpha=self.frozen.scales[i]))
        return hidden, outputs

    def backward(
        self, rows: Tensor, hidden: Tensor, gradients: Sequence[Tensor], needs_rows: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradient of the rows, and those of each A and each B.

        Args:
            gradients: of the layers' outputs, (n, outputs) each.
        """
        of_hidden = torch.empty_like(hidden)
        of_b = []
        for i, (part, of_part) in enumerate(zip(self._split(hidden), self._split(of_hidden), strict=True)):
            gradient, matrix, scale = gradients[i], self.lora_b[i], self.frozen.scales[i]
            torch.addmm(of_part, gradient, matrix, beta=0, alpha=scale, out=of_part)
            of_b.append(_scaled_product(gradient, part, scale))
        ranks = [matrix.shape[1] for matrix in self.lora_b]
        of_adapters = [*torch.mm(of_hidden.t(), rows).split(ranks), *of_b]
        if not needs_rows:
            return None, of_adapters
        of_rows: Tensor | None = None
        for gradient, weight in zip(gradients, self.frozen.weights, strict=True):
            of_rows = product(gradient, weight.t(), of_rows)
        assert of_rows is not None
        return of_rows.addmm_(of_hidden, self.lora_a), of_adapters


def _scaled_product(gradient: Tensor, part: Tensor, scale: float) -> Tensor:
    """Return `scale * gradient.T @ part`, (outputs, rank). A CPU computes the transpose of a long one in half the time."""
    if gradient.device.type == "cpu" and gradient.shape[1] > LONG:
        turned = gradient.new_empty(part.shape[1], gradient.shape[1])
        return torch.addmm(turned, part.t(), gradient, beta=0, alpha=scale, out=turned).t()
    found = gradient.new_empty(gradient.shape[1], part.shape[1])
    return torch.addmm(found, gradient.t(), part, beta=0, alpha=scale, out=found)


def _as_rows(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    return inputs.reshape(-1, inputs.shape[-1]).to(dtype)


class _SharedInput(torch.autograd.Function):
    """See `apply_layers`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, inputs: Tensor, frozen: FrozenPart, dtype: torch.dtype, *adapters: Tensor
    ) -> tuple[Tensor, ...]:
        layers = _Layers.of(frozen, adapters, dtype)
        rows = _as_rows(inputs, dtype)
        hidden, outputs = layers.forward(rows)
        ctx.save_for_backward(rows, hidden, layers.lora_a, *layers.lora_b)
        ctx.frozen, ctx.of_inputs, ctx.dtypes = frozen, (inputs.shape, inputs.dtype), [m.dtype for m in adapters]
        return tuple(output.view(*inputs.shape[:-1], output.shape[-1]) for output in outputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, lora_a, *lora_b = ctx.saved_tensors
        layers = _Layers(ctx.frozen, lora_a, tuple(lora_b))
        flat = [_as_rows(gradient, rows.dtype) for gradient in gradients]
        of_rows, found = layers.backward(rows, hidden, flat, ctx.needs_input_grad[0])
        shape, dtype = ctx.of_inputs
        of_inputs = None if of_rows is None else of_rows.view(shape).to(dtype)
        return of_inputs, None, None, *(one.to(kind) for one, kind in zip(found, ctx.dtypes, strict=True))


class _GatedMlp(torch.autograd.Function):
    """See `apply_gated_mlp`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, inputs: Tensor, wide: FrozenPart, narrow: FrozenPart, dtype: torch.dtype, *adapters: Tensor
    ) -> Tensor:
        first, second = _Layers.of(wide, adapters[:4], dtype), _Layers.of(narrow, adapters[4:], dtype)
        rows = _as_rows(inputs, dtype)
        hidden, (gate, up) = first.forward(rows)
        active = silu(gate).mul_(up)
        hidden_2, (output,) = second.forward(active)
        matrices = first.lora_a, *first.lora_b, second.lora_a, *second.lora_b
        ctx.save_for_backward(rows, hidden, gate, up, active, hidden_2, *matrices)
        ctx.frozen, ctx.of_inputs = (wide, narrow), (inputs.shape, inputs.dtype)
        ctx.dtypes = [matrix.dtype for matrix in adapters]
        return output.view(*inputs.shape[:-1], output.shape[-1])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, hidden, gate, up, active, hidden_2, a_1, b_gate, b_up, a_2, b_2 = ctx.saved_tensors
        wide, narrow = ctx.frozen
        second = _Layers(narrow, a_2, (b_2,))
        of_active, found_2 = second.backward(active, hidden_2, [_as_rows(gradient, rows.dtype)], True)
        assert of_active is not None
        of_up = silu(gate).mul_(of_active)
        of_gate = torch.ops.aten.silu_backward(of_active.mul_(up), gate)
        first = _Layers(wide, a_1, (b_gate, b_up))
        of_rows, found_1 = first.backward(rows, hidden, [of_gate, of_up], ctx.needs_input_grad[0])
        shape, dtype = ctx.of_inputs
        of_inputs = None if of_rows is None else of_rows.view(shape).to(dtype)
        found = zip((*found_1, *found_2), ctx.dtypes, strict=True)
        return of_inputs, None, None, None, *(one.to(kind) for one, kind in found)


def _precision(inputs: Tensor) -> torch.dtype:
    """Return the precision in which a linear layer multiplies here."""
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype


def apply_layers(inputs: Tensor, frozen: FrozenPart, adapters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the outputs of LoRA layers that read the same input.

    Args:
        inputs: (..., inputs).
        adapters: the A matrices, (rank, inputs) each, then the B matrices, (outputs, rank) each.
    """
    outputs: tuple[Tensor, ...] = _SharedInput.apply(inputs, frozen, _precision(inputs), *adapters)
    return outputs


def apply_gated_mlp(inputs: Tensor, wide: FrozenPart, narrow: FrozenPart, adapters: Sequence[Tensor]) -> Tensor:
    """Return down(silu(gate(x)) * up(x)) of LoRA layers.

    Args:
        inputs: (..., inputs).
        wide: the layers gate and up.
        narrow: the layer down.
        adapters: the matrices A and then B of `wide`, then A and B of `narrow`.
    """
    output: Tensor = _GatedMlp.apply(inputs, wide, narrow, _precision(inputs), *adapters)
    return output
