"""Private parts of PEFT: the cast of a layer's input, and what a LoRA layer computes."""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer


def leave_casts_to_autocast(model: PeftModel) -> None:
    """Keep adapter layers from casting a bf16 input to the fp32 of the adapter where `autocast` casts it back to bf16.

    A hook sets the layer's flag before each forward pass: True without autocast, False with it.

    Reason: the two casts change no number and take time in every layer. PEFT's public switch,
    `peft.helpers.disable_input_dtype_casting`, is for the whole model and would have to be set anew for every forward pass,
    those of the backward pass under gradient checkpointing included.
    Read against: PEFT 0.20 and 0.21 (`BaseTunerLayer.cast_input_dtype_enabled`, read in `_cast_input_dtype`).
    Remove when: PEFT skips the cast under autocast.
    """
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.register_forward_pre_hook(_set_cast)


def _set_cast(layer: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    layer.cast_input_dtype_enabled = not (args and torch.is_autocast_enabled(args[0].device.type))  # type: ignore[assignment]


def plain_adapter(layer: Linear) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """Return A, B and the scale of a LoRA layer whose output is `base(x) + scale * x A' B'` now; None if it is another.

    Reason: PEFT's layers have no public view of what they compute. DoRA and other variants, several, merged or disabled adapters,
    dropout, a bias of the adapter, transposed or quantised base weights all change it.
    Read against: PEFT 0.20 and 0.21 (`LoraLayer` and `Linear.forward` in `peft.tuners.lora.layer`).
    Remove when: PEFT computes LoRA layers that read the same input together.
    """
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1 or layer.fan_in_fan_out:
        return None
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return None
    dropout = layer.lora_dropout[name]
    if getattr(dropout, "p", 0.0) and dropout.training:
        return None
    base = layer.base_layer
    if type(base) is not torch.nn.Linear or base.weight.requires_grad:
        return None
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])
