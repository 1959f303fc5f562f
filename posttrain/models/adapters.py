"""New LoRA adapters: which layers get one, for every kind of model."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from posttrain.config import LoraSection, ModelSection
from posttrain.errors import UserError


def with_adapter(model: PreTrainedModel, section: ModelSection, task: str = "CAUSAL_LM") -> PeftModel:
    """Return the model with a new LoRA adapter.

    Args:
        task: as PEFT names it. `SEQ_CLS` also trains the head for scores.

    Raises:
        UserError: `target_modules` names a layer that does not exist or cannot have an adapter.
    """
    if section.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = section.lora
    state_space = _state_space_outputs(model)
    _check_targets(model, lora, state_space)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=sorted(state_space) if state_space and lora.target_modules == "all-linear" else None,
        task_type=task,
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def _state_space_outputs(model: torch.nn.Module) -> set[str]:
    """Return the names of output projections of state-space layers, whose kernels read the weight and skip an adapter."""
    return {
        f"{name}.out_proj"
        for name, layer in model.named_modules()
        if all(hasattr(layer, part) for part in ("A_log", "D", "conv1d", "out_proj"))
    }


def _check_targets(model: PreTrainedModel, lora: LoraSection, state_space: set[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    linear = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear | Conv1D) and layer is not model.get_output_embeddings()
        }
        - {name.rsplit(".", 1)[-1] for name in state_space}
    )
    choose = f"name some of {', '.join(linear)}, or use all-linear"
    if lora.target_modules == "all-linear":
        if not linear:
            raise UserError("model.lora: the model has no linear layer for an adapter: set model.method to full")
        return
    for target in lora.target_modules:
        matched = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matched:
            raise UserError(f"model.lora.target_modules: no layer of the model is named {target}: {choose}")
        if state_space & set(matched):
            raise UserError(
                f"model.lora.target_modules: {target} is the output of a state-space layer, whose kernel skips adapters: {choose}"
            )
        layers: list[Any] = [model.get_submodule(name) for name in matched]
        unsupported = [type(layer).__name__ for layer in layers if not _can_adapt(layer)]
        if unsupported:
            raise UserError(
                f"model.lora.target_modules: {target} is a {unsupported[0]}, which cannot have an adapter: {choose}"
            )
        tied = _tied(model)
        if any(layer in (model.get_input_embeddings(), model.get_output_embeddings()) for layer in layers) and tied:
            raise UserError(
                f"model.lora.target_modules: {target} shares its weight with the model's "
                f"{'output' if layers[0] is model.get_input_embeddings() else 'input'} layer, which an adapter would not change, "
                f"so the merged model would differ from the trained one: {choose}"
            )


def _tied(model: PreTrainedModel) -> bool:
    """Return whether input and output embeddings are one weight."""
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    return outputs is not None and getattr(outputs, "weight", None) is getattr(inputs, "weight", ...)


def _can_adapt(layer: torch.nn.Module) -> bool:
    return isinstance(
        layer, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv1d | torch.nn.Conv2d | Conv1D
    ) or hasattr(layer, "in_features")
