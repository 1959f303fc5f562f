"""Which precision a model runs in where nobody names one."""

import json

import pytest
import torch
from safetensors.torch import save_file

from posttrain.config import ModelSection
from posttrain.models.precision import MIN_AMX_WIDTH, uses_bf16


@pytest.fixture
def folder(tmp_path):
    """Of a model with some hidden size."""

    def write(hidden_size: int) -> str:
        (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "hidden_size": hidden_size}))
        save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
        return str(tmp_path)

    return write


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is asked instead")
@pytest.mark.parametrize(
    ("hidden_size", "amx", "expected"),
    [(MIN_AMX_WIDTH, True, True), (MIN_AMX_WIDTH, False, False), (MIN_AMX_WIDTH - 1, True, False)],
)
def test_a_cpu_takes_bf16_by_itself_with_amx_and_a_wide_model(folder, monkeypatch, hidden_size, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    section = ModelSection(base=folder(hidden_size))
    assert uses_bf16(section) == expected
    assert uses_bf16(section.model_copy(update={"precision": "bf16"}))
    assert not uses_bf16(section.model_copy(update={"precision": "fp32"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is asked instead")
def test_the_demo_is_the_same_on_every_cpu(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not uses_bf16(ModelSection(base="demo"))
