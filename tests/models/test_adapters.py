"""Which layers get an adapter, and which names are refused."""

import pytest
import torch
from support.families import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.models.adapters import with_adapter


def section(targets: str | list[str] = "all-linear") -> ModelSection:
    return ModelSection.model_validate({"method": "lora", "lora": {"rank": 2, "target_modules": targets}})


def adapted(family: str, targets: str | list[str] = "all-linear") -> set[str]:
    model = with_adapter(tiny_model(family), section(targets))
    return {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_modules() if ".lora_A." in name}


def test_every_linear_layer_of_a_transformer_has_an_adapter() -> None:
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted("llama") == names


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "falcon_h1", "nemotron_h", "bamba"])
def test_outputs_of_state_space_layers_have_none(family: str) -> None:
    names = adapted(family)
    assert "out_proj" not in names
    assert names & {"in_proj", "x_proj", "dt_proj"}


@pytest.mark.parametrize(
    ("family", "targets", "message"),
    [
        ("llama", ["q_proj", "query"], "no layer of the model is named query: name some of down_proj, gate_proj"),
        ("llama", ["proj"], "no layer of the model is named proj"),
        ("mamba", ["in_proj", "out_proj"], "out_proj is the output of a state-space layer"),
        ("llama", ["input_layernorm"], "input_layernorm is a LlamaRMSNorm, which cannot have an adapter"),
    ],
)
def test_names_that_cannot_have_an_adapter_are_errors(family: str, targets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_adapter(tiny_model(family), section(targets))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_has_no_adapter(tied: bool) -> None:
    """The merged model would change the head as well."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=tied
    )  # fmt: skip
    if tied:
        with pytest.raises(UserError, match="embed_tokens shares its weight with the model's output layer"):
            with_adapter(LlamaForCausalLM(config), section(["embed_tokens"]))
    else:
        with_adapter(LlamaForCausalLM(config), section(["embed_tokens"]))
