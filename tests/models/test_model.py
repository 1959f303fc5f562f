"""The precision that `precision: auto` chooses."""

import json

import pytest
import torch
from safetensors.torch import save_file

from posttrain.config import ModelSection
from posttrain.models.precision import MIN_AMX_WIDTH, free_gib, uses_bf16


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
    assert uses_bf16(section) == expected
    assert uses_bf16(section.model_copy(update={"precision": "bf16"}))
    assert not uses_bf16(section.model_copy(update={"precision": "fp32"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the choice depends on the GPU then")
def test_auto_is_fp32_for_the_demo_on_every_cpu(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": True})
    assert not uses_bf16(ModelSection(base="demo"))


def test_memory_that_pytorch_can_use_again_counts_as_free(monkeypatch):
    """The driver has 10 GiB free; of 60 GiB that PyTorch holds, tensors take 25."""
    sizes = {"mem_get_info": (10 * 2**30, 80 * 2**30), "memory_reserved": 60 * 2**30, "memory_allocated": 25 * 2**30}
    for name, value in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert free_gib() == 45
