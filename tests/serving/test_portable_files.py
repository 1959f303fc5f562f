"""An export is read alike by transformers 5, transformers 4, vLLM and llama.cpp's converter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.transformers4 import Transformers4
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.models.base import demo_folder
from posttrain.serving.portable_files import make_portable, portable_config

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
LAYERS = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def plain(theta: float, **more: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


# Model type, rope settings as transformers 5 has them, further settings, and the same under the older names.
ROPE: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "default": ("llama", plain(5e5), {}, {"rope_theta": 5e5}),
    "llama3": ("llama", {**LLAMA3, "rope_theta": 5e5}, {}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "yarn": ("qwen2", {**YARN, "rope_theta": 1e6}, {}, {"rope_theta": 1e6, "rope_scaling": YARN}),
    "partial": ("phi", plain(2e4, partial_rotary_factor=0.25), {}, {"rope_theta": 2e4, "partial_rotary_factor": 0.25}),
    "other names": (
        "gpt_neox",
        plain(3e4, partial_rotary_factor=0.5),
        {},
        {"rotary_emb_base": 3e4, "rotary_pct": 0.5},
    ),
    "longrope": (
        "phi3",
        {"rope_type": "longrope", "rope_theta": 2e4, **LONG},
        {"original_max_position_embeddings": 32},
        {"rope_theta": 2e4, "partial_rotary_factor": 1.0, "rope_scaling": {"type": "longrope", **LONG}},
    ),
    "two kinds of layers": (
        "gemma3_text",
        {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}, "sliding_attention": plain(2e4)},
        LAYERS,
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "scaled layers": (
        "olmo3",
        {"full_attention": {**YARN, "rope_theta": 5e5}, "sliding_attention": plain(5e5)},
        LAYERS,
        {"rope_theta": 5e5, "rope_scaling": YARN},
    ),
}
OLDER = {
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "rotary_emb_base",
    "rotary_pct",
    "rope_local_base_freq",
}


def config_of(name: str) -> Any:
    kind, rope, more, _ = ROPE[name]
    return AutoConfig.for_model(kind, **SIZES, **more, rope_parameters=rope)


@pytest.mark.parametrize("name", ROPE)
def test_rope_settings_are_in_both_places(name: str) -> None:
    config = config_of(name)
    written = json.loads(config.to_json_string())
    found = portable_config(written)
    expected = ROPE[name][3]
    scaling = found.get("rope_scaling")
    if scaling and "rope_scaling" in expected:  # transformers may add values that it derives
        found["rope_scaling"] = {key: scaling[key] for key in scaling if key in expected["rope_scaling"]}
        assert len(scaling) == 3 or name != "longrope"  # Phi-3's config in transformers 4 accepts three fields
    assert {key: value for key, value in found.items() if key in OLDER} == expected
    assert found["rope_parameters"] == written["rope_parameters"]
    again = AutoConfig.for_model(**{**found, "rope_scaling": scaling})  # transformers 5 prefers the older names
    for kind, values in _by_layer(config.rope_parameters).items():
        assert values.items() <= _by_layer(again.rope_parameters)[kind].items()


def _by_layer(rope: dict[str, Any]) -> dict[str, Any]:
    return rope if "full_attention" in rope else {"all": rope}


def test_a_model_without_rope_gets_no_rope_settings() -> None:
    config = json.loads(AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=64).to_json_string())
    assert not OLDER & portable_config(config).keys()


def test_a_nested_config_is_rewritten_too() -> None:
    inner = {"model_type": "llama", "rope_parameters": plain(7e4), "_name_or_path": "/home/me/base"}
    found = portable_config({"model_type": "llava", "_name_or_path": "/home/me/base", "text_config": inner})
    assert found["text_config"]["rope_theta"] == 7e4
    assert "/home/me" not in json.dumps(found)


def test_the_tokenizer_is_one_that_every_release_has(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    tokenizer.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert before["tokenizer_class"] == "TokenizersBackend"  # else this is not needed any more
    make_portable(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|system|>", "<|user|>", "<|assistant|>"]
    assert not {"extra_special_tokens", "is_local", "local_files_only", "name_or_path"} & config.keys()
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.added_tokens_decoder == tokenizer.added_tokens_decoder
    assert again.all_special_ids == tokenizer.all_special_ids
    assert again.chat_template == tokenizer.chat_template


def test_a_named_tokenizer_class_stays(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", "is_local": True}))
    make_portable(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"tokenizer_class": "Qwen2Tokenizer"}


IDS = (torch.arange(48)[None] * 7) % 60 + 3


@pytest.mark.soak
def test_transformers_4_computes_the_same(transformers4: Transformers4, tmp_path: Path) -> None:
    models = {}
    for name in ROPE:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(name)).eval()
        for weights in model.parameters():
            weights.data *= 8 if weights.ndim > 1 else 1  # at their usual size, the position hardly matters
        folder = tmp_path / name.replace(" ", "-")
        model.save_pretrained(folder)
        make_portable(folder)
        models[folder] = model
    found = transformers4.logits(IDS, *models)
    for (folder, model), logits in zip(models.items(), found, strict=True):
        with torch.no_grad():
            expected = model(IDS).logits
        assert (logits - expected).abs().max() < 1e-4, folder.name
