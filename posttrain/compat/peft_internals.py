"""Private parts of PEFT: the cast of a layer's input."""

from __future__ import annotations

import torch
from peft import PeftModel
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
