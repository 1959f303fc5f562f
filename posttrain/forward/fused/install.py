"""Which modules of a LoRA model are computed in fewer operations, and the check that each still computes the same."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from posttrain.forward.fused.modules import (
    SharedInput,
    frozen_part,
    fuse_mlp,
    fuse_norm,
    fuse_rotary,
    fuse_shared,
    restore,
    same_output,
)

SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of the layers of one module that read the same input, in the order in which it calls them."""
PROJECTIONS = "LoRA projections"


class Fused:
    """The fused modules of a model, counted by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        """Modules that stay as they are, by the class whose trial failed."""
        self.shared: list[SharedInput] = []

    def describe(self) -> str:
        """Return what was fused and what was not, in words."""
        text = ", ".join(f"{count} {kind}" for kind, count in self.counts.items()) or "nothing"
        left = ", ".join(f"{count} {kind}" for kind, count in self.own.items() if count)
        return text + (f"; computed as before: {left}" if left else "")


def fuse(model: Any) -> Fused | None:
    """Compute the modules of a LoRA model in fewer operations where that gives the same output.

    Returns:
        What was fused; None for a model without LoRA, or that was fused before.
    """
    if not isinstance(model, PeftModel) or any(hasattr(type(module), "own_class") for module in model.modules()):
        return None
    fused = Fused()
    for module in list(model.modules()):
        children = [child for child in module.children() if isinstance(child, LoraLinear)]
        for layers in _groups(module):
            fused.shared.append(fuse_shared(layers))
            fused.counts[PROJECTIONS] += len(layers)
            children = [child for child in children if all(child is not layer for layer in layers)]
        fused.own[PROJECTIONS] += len(children)
        if all(hasattr(module, name) for name in ("q_proj", "k_proj")) and fuse_rotary(module):
            fused.counts["rotary embeddings"] += 1
    trials = _Trials()
    for module in model.modules():
        for kind, eligible, apply in (("gated MLPs", is_gated_mlp, fuse_mlp), ("norms", is_rms_norm, fuse_norm)):
            if not eligible(module):
                continue
            if trials.passes(module, apply):
                apply(module)
                fused.counts[kind] += 1
            else:
                fused.own[type(module).__name__] += 1
    return fused if fused.counts else None


def unfuse(model: nn.Module) -> None:
    """Give all modules their own classes again."""
    for module in model.modules():
        restore(module)


def _groups(module: nn.Module) -> Iterator[Sequence[LoraLinear]]:
    """Yield the LoRA layers among a module's children, those that read the same input together."""
    left = {name: child for name, child in module.named_children() if isinstance(child, LoraLinear)}
    for names in SHARED:
        layers = [left.get(name) for name in names]
        if all(layer is not None and frozen_part([layer]) for layer in layers):
            yield [left.pop(name) for name in names]
    yield from ([layer] for layer in left.values() if frozen_part([layer]))


def is_gated_mlp(module: nn.Module) -> bool:
    """Return whether a module has the layers of a SwiGLU MLP, all of them with LoRA."""
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    active = type(getattr(module, "act_fn", None)).__name__
    return active in ("SiLU", "SiLUActivation") and all(
        isinstance(layer, LoraLinear) and frozen_part([layer]) is not None for layer in layers
    )


def is_rms_norm(module: nn.Module) -> bool:
    """Return whether a module is an RMSNorm with a frozen weight, by its name and attributes."""
    weight = getattr(module, "weight", None)
    named = type(module).__name__.endswith("RMSNorm") and hasattr(module, "forward")
    has_epsilon = hasattr(module, "variance_epsilon") or isinstance(getattr(module, "eps", None), float)
    return named and has_epsilon and isinstance(weight, nn.Parameter) and weight.ndim == 1 and not weight.requires_grad


class _Trials:
    """Compares the first module of each class before and after."""

    def __init__(self) -> None:
        self._passed: dict[type, bool] = {}

    def passes(self, module: nn.Module, apply: Any) -> bool:
        """Return whether a module of this class computes the same if it is fused; leaves the module as it was."""
        own = type(module)
        if own not in self._passed:
            self._passed[own] = _compare(module, apply)
            module.__class__ = own
        return self._passed[own]


@torch.no_grad()
def _compare(module: Any, apply: Any) -> bool:
    layer = getattr(module, "gate_proj", None)
    weight = module.weight if layer is None else layer.base_layer.weight
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 3, weight.shape[-1], generator=generator).to(weight.device, weight.dtype)
    expected = module(inputs)
    apply(module)
    return same_output(module, inputs, expected)


@functools.cache
def announce_fused(text: str) -> None:
    """Print what is computed in fewer operations, once per process and text."""
    print(f"Layers computed in fewer operations: {text}")
