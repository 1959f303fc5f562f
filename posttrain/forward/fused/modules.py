"""Modules of a LoRA model that compute the same as before in fewer operations.

A module gets a subclass of its own class, made here, whose `forward` uses the functions of this package while that is possible.
Otherwise (merged or disabled adapters, dropout, quantised or sharded weights) it is the class's own.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.compat.peft_internals import plain_adapter
from posttrain.compat.transformers_internals import forward_with_rotary, rotary_function
from posttrain.forward.fused.lora_products import FrozenPart, apply_gated_mlp, apply_layers
from posttrain.forward.fused.norm import apply_rms_norm
from posttrain.forward.fused.rotary import rotates_halves, with_fallback


def frozen_part(layers: Sequence[LoraLinear]) -> tuple[FrozenPart, list[Tensor]] | None:
    """Return the matrices of LoRA layers, and their adapters (A matrices first); None if a layer is not a plain one now."""
    found = [plain_adapter(layer) for layer in layers]
    weights = [layer.base_layer.weight for layer in layers]
    if any(isinstance(w, DTensor) or w.numel() != layer.in_features * layer.out_features
           for w, layer in zip(weights, layers, strict=True)):  # fmt: skip
        return None  # sharded
    parts = [one for one in found if one is not None]
    if len(parts) < len(layers):
        return None
    biases = tuple(layer.base_layer.bias for layer in layers)
    adapters = [*(a for a, _, _ in parts), *(b for _, b, _ in parts)]
    return FrozenPart(tuple(weights), biases, tuple(scale for _, _, scale in parts)), adapters


class SharedInput:
    """LoRA layers of one module that read the same input. The first one computes all, the others take their output."""

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        # Weak: a model that refers to itself stays in memory until Python collects garbage.
        self._layers = [weakref.ref(layer) for layer in layers]
        self._inputs: Tensor | None = None
        self._version = 0
        self._outputs: dict[int, Tensor] = {}

    def output(self, layer: LoraLinear, inputs: Tensor) -> Tensor | None:
        """Return the output of a layer; None if its own `forward` must compute it."""
        layers = [one for ref in self._layers if (one := ref()) is not None]
        place = next((i for i, one in enumerate(layers) if one is layer), None)
        if place is None:
            return None  # a copy of the model
        if place > 0:
            same = self._inputs is inputs and self._version == inputs._version
            found = self._outputs.pop(place, None) if same else None
            if not self._outputs:
                self._inputs = None
            return found if found is not None else _alone(layer, inputs)
        part = frozen_part(layers)
        if part is None:
            self._inputs, self._outputs = None, {}
            return None
        output, *others = apply_layers(inputs, *part)
        if others:
            self._inputs, self._version = inputs, inputs._version
        self._outputs = dict(enumerate(others, 1))
        return output

    @property
    def is_waiting(self) -> bool:
        """Whether outputs were computed that no layer has taken."""
        return bool(self._outputs)


def _alone(layer: LoraLinear, inputs: Tensor) -> Tensor | None:
    part = frozen_part([layer])
    return None if part is None else apply_layers(inputs, *part)[0]


class _FusedLora:
    shared_input: SharedInput

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = None if args or kwargs else self.shared_input.output(self, x)  # type: ignore[arg-type]
        if output is not None:
            return output
        own: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return own


class _FusedMlp:
    gate_proj: LoraLinear
    up_proj: LoraLinear
    down_proj: LoraLinear

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        wide = narrow = None
        if not args and not kwargs:
            wide, narrow = frozen_part([self.gate_proj, self.up_proj]), frozen_part([self.down_proj])
        if wide is None or narrow is None or any(bias is not None for bias in (*wide[0].biases, *narrow[0].biases)):
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return apply_gated_mlp(x, wide[0], narrow[0], [*wide[1], *narrow[1]])


class _FusedNorm:
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.weight
        if isinstance(weight, DTensor) or weight.requires_grad or weight.dtype != hidden_states.dtype:
            own: Tensor = super().forward(hidden_states)  # type: ignore[misc]
            return own
        return apply_rms_norm(hidden_states, weight, norm_epsilon(self))


def norm_epsilon(norm: Any) -> float:
    """Return what an RMSNorm adds to the mean square."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


@functools.cache
def _subclass(fused: type, own: Any) -> type:
    return type(own.__name__, (fused, own), {"__module__": own.__module__, "own_class": own})


def _swap(module: Any, fused: type) -> None:
    module.__class__ = _subclass(fused, module.__class__)


def fuse_shared(layers: Sequence[LoraLinear]) -> SharedInput:
    """Let LoRA layers that read the same input, in the order in which the model calls them, compute together."""
    shared = SharedInput(layers)
    for layer in layers:
        _swap(layer, _FusedLora)
        layer.shared_input = shared  # type: ignore[assignment]
    return shared


def fuse_mlp(mlp: nn.Module) -> None:
    """Compute a gated MLP of LoRA layers as a whole."""
    _swap(mlp, _FusedMlp)


def fuse_norm(norm: nn.Module) -> None:
    """Compute an RMSNorm whose weight is frozen in few operations."""
    _swap(norm, _FusedNorm)


@functools.cache
def _with_rotary(own: Any) -> type | None:
    function = rotary_function(own)
    if function is None or not rotates_halves(function):
        return None
    forward = forward_with_rotary(own, with_fallback(function))
    return type(own.__name__, (own,), {"__module__": own.__module__, "own_class": own, "forward": forward})


def fuse_rotary(attention: Any) -> bool:
    """Turn queries and keys in few operations; returns whether the attention turns them in the way that is known here."""
    fused = _with_rotary(attention.__class__)
    if fused is not None:
        attention.__class__ = fused
    return fused is not None


def restore(module: nn.Module) -> None:
    """Give a module its own class again."""
    module.__class__ = getattr(type(module), "own_class", type(module))


@torch.no_grad()
def same_output(module: nn.Module, inputs: Tensor, expected: Tensor) -> bool:
    """Return whether a module's output equals the expected one but for rounding."""
    tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 3e-2
    difference = (module(inputs) - expected).abs().max()
    return bool(difference <= tolerance * (expected.abs().max() + 1e-3))
