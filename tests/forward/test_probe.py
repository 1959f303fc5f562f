"""The trial of flat batches takes the path of training: precision, backward pass, more than one block of tokens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from posttrain.config import ModelSection
from posttrain.forward import attention, probe
from posttrain.forward.flat import use_flat_batches
from posttrain.forward.probe import Probe
from posttrain.models.base import resolve_base
from posttrain.models.loading import load_model

CONFIG = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 60,
}  # fmt: skip


def model(**settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG, **settings))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_models_that_are_right_pass_in_every_precision(tiny_folder, method, precision):
    section = ModelSection(base=str(tiny_folder), method=method, precision=precision)
    assert use_flat_batches(load_model(resolve_base(section), section, trainable=True), section, trains=True) is None


def test_a_wrong_backward_pass_is_found(monkeypatch):
    """The values of every segment are right, and lose their gradient."""
    whole = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda q, k, v, *rest: whole(q, k, v.detach(), *rest))
    assert use_flat_batches(model(), ModelSection(precision="fp32"), trains=False) is None
    reason = use_flat_batches(model(), ModelSection(precision="fp32"), trains=True)
    assert reason.startswith("in a trial their gradient differed from the model's own by")


def test_the_row_has_more_tokens_than_a_block_where_the_model_has_positions():
    assert len(Probe.of(model()).prompt) + 5 + 3 + 4 > 128
    assert len(Probe.of(model(max_position_embeddings=64)).prompt) + 5 == 64


def test_the_trial_runs_under_autocast(monkeypatch):
    seen = []
    whole = probe._own_logps

    def record(*inputs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return whole(*inputs)

    monkeypatch.setattr(probe, "_own_logps", record)
    for precision in ("bf16", "fp32"):
        Probe.of(model(), ModelSection(precision=precision))
    assert seen == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("precision", "expected"), [("bf16", 0.3), ("fp32", 1e-3)])
def test_a_base_in_4_bit_has_the_tolerance_of_its_products(precision, expected):
    """Its weights have a type of their own, and its norms are fp32 under QLoRA."""
    assert Probe.of(model(), ModelSection(method="qlora", precision=precision)).tolerance == expected
