"""What posttrain/compat/peft_internals.py relies on in PEFT."""

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from support.contracts import require

from posttrain.compat.peft_internals import leave_casts_to_autocast


def adapter_layer():
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4).bfloat16()), LoraConfig(target_modules=["0"], r=2))
    leave_casts_to_autocast(model)
    (layer,) = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return layer


def input_of_the_adapter(layer, autocast):
    seen = []
    hook = layer.lora_A["default"].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        layer(torch.ones(1, 4, dtype=torch.bfloat16))
    hook.remove()
    return seen


def test_input_is_cast_without_autocast_and_not_with_it():
    layer = adapter_layer()
    for autocast, dtype in ((True, torch.bfloat16), (False, torch.float32), (True, torch.bfloat16)):
        require(
            input_of_the_adapter(layer, autocast) == [dtype],
            "peft",
            "BaseTunerLayer.cast_input_dtype_enabled decides whether a layer casts its input to the adapter's dtype",
            leave_casts_to_autocast,
        )
        assert layer.cast_input_dtype_enabled is (not autocast)


def test_layers_cast_their_input_by_default():
    layer = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"])
    ).base_model.model[0]
    require(
        layer.cast_input_dtype_enabled is True,
        "peft",
        "cast_input_dtype_enabled is True at first",
        leave_casts_to_autocast,
    )
