"""What posttrain/compat/peft_internals.py relies on in PEFT."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from support.contracts import require

from posttrain.compat.peft_internals import leave_casts_to_autocast, plain_adapter


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


def test_a_plain_adapter_adds_its_scaled_product():
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["0"], r=2, lora_alpha=6, use_rslora=True)
    layer = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 3)), config).base_model.model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    found = plain_adapter(layer)
    assert found is not None
    a, b, scale = found
    inputs = torch.randn(2, 4)
    require(
        scale == pytest.approx(6 / 2**0.5)
        and torch.allclose(layer(inputs), layer.base_layer(inputs) + scale * inputs @ a.T @ b.T, atol=1e-6),
        "peft",
        "a LoRA layer adds scaling * B A x to its base layer's output",
        plain_adapter,
    )
    layer.merge()
    assert plain_adapter(layer) is None


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}])
def test_an_adapter_that_computes_more_is_not_plain(options):
    layer = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(4, 3)), LoraConfig(target_modules=["0"], **options)
    ).base_model.model[0]
    require(
        plain_adapter(layer.train()) is None,
        "peft",
        "variants, biases and dropout of a LoRA layer are named as before",
        plain_adapter,
    )
