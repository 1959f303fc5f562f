"""The precision that `precision: auto` chooses."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.config import ModelSection
from posttrain.models.checkpoint import Base
from posttrain.models.loading import load_model
from posttrain.models.precision import MIN_AMX_WIDTH, autocast, compute_dtype, free_gib


def narrow(section):
    assert compute_dtype(section) in (torch.float32, torch.bfloat16)
    return compute_dtype(section) == torch.bfloat16


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a model folder with a given hidden size."""

    def write(hidden_size: int) -> str:
        (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "hidden_size": hidden_size}))
        save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
        return str(tmp_path)

    return write


@pytest.mark.skipif(torch.cuda.is_available(), reason="the choice depends on the GPU then")
@pytest.mark.parametrize(
    ("hidden_size", "amx", "expected"),
    [(MIN_AMX_WIDTH, True, True), (MIN_AMX_WIDTH, False, False), (MIN_AMX_WIDTH - 1, True, False)],
)
def test_auto_is_bf16_on_a_cpu_with_amx_and_a_wide_model(folder, monkeypatch, hidden_size, amx, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": amx})
    section = ModelSection(base=folder(hidden_size))
    assert narrow(section) == expected
    assert narrow(section.model_copy(update={"precision": "bf16"}))
    assert not narrow(section.model_copy(update={"precision": "fp32"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the choice depends on the GPU then")
def test_auto_is_fp32_for_the_demo_on_every_cpu(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": True})
    assert not narrow(ModelSection(base="demo"))


def test_memory_that_pytorch_can_use_again_counts_as_free(monkeypatch):
    """The driver has 10 GiB free; of 60 GiB that PyTorch holds, tensors take 25."""
    sizes = {"mem_get_info": (10 * 2**30, 80 * 2**30), "memory_reserved": 60 * 2**30, "memory_allocated": 25 * 2**30}
    for name, value in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert free_gib() == 45


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_is_fp16_on_a_gpu_without_bf16(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert compute_dtype(ModelSection()) == expected


@pytest.mark.parametrize("tied", [True, False])
def test_a_scored_model_takes_half_the_memory_and_computes_the_same(tmp_path, tied):
    """In bf16, of a model that is trained in full: linear layers have bf16 weights, and the log-probabilities do not change."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 60,
    }
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=tied)).save_pretrained(tmp_path)
    section = ModelSection(base=str(tmp_path), precision="bf16")
    base = Base(id=str(tmp_path), revision=None, digest="any")
    plain, frozen = (load_model(base, section, frozen=which).eval() for which in (False, True))
    ids = torch.arange(1, 20)[None]
    with autocast(section), torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, frozen(input_ids=ids).logits)
    whole, narrowed = (sum(p.numel() * p.element_size() for p in model.parameters()) for model in (plain, frozen))
    assert narrowed < 0.7 * whole
    assert {p.dtype for p in load_model(base, section, trainable=True).parameters()} == {torch.float32}
    exact = load_model(base, section.model_copy(update={"precision": "fp32"}), frozen=True)
    assert {p.dtype for p in exact.parameters()} == {torch.float32}
