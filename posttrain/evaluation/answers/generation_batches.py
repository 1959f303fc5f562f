"""How many prompts are answered together, and by which weights."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.models.loading import Model

SHARE = 0.5
"""Share of the GPU's memory beside the weights that the keys and values of a batch may take."""
MOST_ROWS = 256
"""Largest batch. More rows per step gain little, and the batch goes on until its longest answer ends."""


def kv_bytes(config: Any, width: int) -> int:
    """Return the bytes of keys and values of one token in all layers.

    Args:
        config: of a language model.
        width: bytes of a number.
    """
    n_heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    n_key_heads = getattr(config, "num_key_value_heads", None) or n_heads
    return int(2 * config.num_hidden_layers * n_key_heads * head * width)


def room_bytes(model: Any, gpu: torch.device) -> int:
    """Return a GPU's memory beside the weights. Not what is free now, so that all ranks and a later run make the same batches."""
    weights: int = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    total = int(torch.cuda.get_device_properties(gpu).total_memory)
    return max(0, total - weights)


def rows_that_fit(model: Any, n_tokens: int, tokens_per_batch: int) -> int:
    """Return how many sequences of `n_tokens` are generated at once.

    On a GPU as many as have room for their keys and values. On a CPU `tokens_per_batch` decides, so that every machine makes the
    same batches: a batch's size changes the last digits of its logits.
    """
    where = next(model.parameters()).device
    config = model.config.get_text_config()
    if where.type != "cuda" or not hasattr(config, "num_attention_heads"):
        return max(1, tokens_per_batch // n_tokens)
    width = 4 if model.dtype == torch.float32 and not torch.is_autocast_enabled("cuda") else 2
    fitting = int(SHARE * room_bytes(model, where)) // (n_tokens * kv_bytes(config, width))
    return max(1, min(MOST_ROWS, fitting))


def merged(model: Model) -> Model:
    """Return a model with its adapter added to its weights, if all are fp32: one product a layer instead of three.

    In 16 bit or 4 bit the sum would be rounded, and a small change by training would be lost: the model is returned as it is.
    """
    if not isinstance(model, PeftModel) or any(weight.dtype != torch.float32 for weight in model.parameters()):
        return model
    plain: PreTrainedModel = model.merge_and_unload()
    return plain
