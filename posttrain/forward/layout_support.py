"""Which models and settings allow flat batches."""

from __future__ import annotations

from typing import Any

from peft import PeftModel

from posttrain.config import ModelSection

BY_SEGMENT = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers, by transformers' name, whose attention can be computed by segments."""


def why_padded(model: Any, section: ModelSection) -> str | None:
    """Return why a model cannot have flat batches, as far as settings and config tell; None if they do not exclude it."""
    if section.layout == "padded":
        return "model.layout is set to padded"
    if section.attention in ("eager", "flash_attention_2"):
        return f"model.attention {section.attention} does not support segments"
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return "the adapter puts virtual tokens before the prompt"
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - BY_SEGMENT
    if others:
        return (
            f"the model has layers that are not full or sliding-window attention ({', '.join(sorted(others))}) and would mix the "
            "responses of a row"
        )
    return None


def expected_windows(config: Any) -> set[int]:
    """Return the sliding windows that a model's layers must hand to the attention."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    return {window} if window is not None and slides else set()
