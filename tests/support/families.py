"""Tiny models with random weights, one of each family of causal language models."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

N_VOCABULARY = 128
WINDOW = 6
"""Sliding window, shorter than the sequences of the tests."""

SIZES: dict[str, Any] = {
    "vocab_size": N_VOCABULARY,
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "attention_hidden_size", "lru_width"), 32
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_groups", "mamba_n_groups"), 1),
    "sliding_window": WINDOW,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "chunk_size"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
    "mamba_d_ssm": 64,
    "conv_kernel": 4,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "is_encoder_decoder": False,
}
"""Sizes by the names that families give them; each config takes those that it has."""


def _plain(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {} for line in names for name in line.split()}


LATENT = {"num_key_value_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    # dense, full attention
    **_plain(
        "llama ministral3 qwen2 qwen3 gemma phi gpt2 opt gpt_neox gpt_bigcode stablelm olmo olmo2 cohere glm glm4",
        "granite smollm3 seed_oss helium nemotron persimmon biogpt xglm arcee apertus ernie4_5 hunyuan_v1_dense",
        "nanochat bitnet",
    ),
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    # dense, sliding windows
    **_plain(
        "mistral ministral gemma2 gemma3_text gemma4_text phi3 starcoder2 olmo3 cohere2 exaone4 vaultgemma",
    ),
    # positions in the attention's scores
    **_plain(
        "bloom mpt falcon",
    ),
    # mixtures of experts
    **_plain(
        "mixtral qwen2_moe qwen3_moe olmoe granitemoe granitemoeshared phimoe gpt_oss glm4_moe ernie4_5_moe",
        "hunyuan_v1_moe jetmoe minimax minimax_m2 flex_olmo llama4_text deepseek_v4",
    ),
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    # state-space, linear attention, recurrent
    **_plain(
        "mamba falcon_mamba falcon_h1 nemotron_h rwkv qwen3_next",
    ),
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    # not made for this
    **_plain(
        "modernbert-decoder bert xlnet",
    ),
}
"""Settings of each family besides `SIZES`."""


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    """Return a model of the family with two layers, or as many as it has kinds of layers, and always the same weights."""
    known = CONFIG_MAPPING[family]().get_text_config()
    names = known.to_dict().keys() | type(known).attribute_map.keys()
    defaults = known.to_dict()
    settings = {name: value for name, value in SIZES.items() if name in names}
    for name in ("sliding_window", "q_lora_rank"):
        if defaults.get(name) is None:
            settings.pop(name, None)
    if kinds := defaults.get("layer_types"):
        distinct = list(dict.fromkeys(kinds))
        n_layers = max(2, len(distinct))
        settings["layer_types"] = (distinct * 2)[:n_layers]
        settings |= {name: n_layers for name in ("num_hidden_layers", "n_layer") if name in settings}
    config = type(known)(**{**settings, **FAMILIES[family], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for (
            parameter
        ) in model.parameters():  # some families start with zeros, whose adapters and windows would have no effect
            if parameter.dim() > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config.pad_token_id = 0
    return model
