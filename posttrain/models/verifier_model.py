"""Verifiers: a language model whose head gives one score to a prompt with an answer, instead of the next token."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from posttrain.compat.peft_internals import leave_casts_to_autocast
from posttrain.config import ModelSection
from posttrain.errors import UserError
from posttrain.models.adapters import with_adapter
from posttrain.models.base import LOCAL_ONLY
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.loading import Model, load_model, load_weights, prepare_loading
from posttrain.models.precision import device

QUANTISED = ("is_loaded_in_4bit", "is_quantized", "quantization_method", "hf_quantizer")
"""Attributes by which PEFT and Trainer know a 4-bit model."""


class ScalarHead(torch.nn.Linear):
    """One score for a hidden state, computed in fp32 under autocast too: bf16 would round a score of 5 to multiples of 0.03."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), self.weight.float())


def new_verifier(base: Base, section: ModelSection, start: Checkpoint | None, pad_id: int) -> Model:
    """Return an untrained verifier: a base or a checkpoint with a new head, and a new adapter for method lora or qlora.

    An adapter of the checkpoint becomes part of the weights first.

    Args:
        start: an SFT or DPO checkpoint; None for the base.
        pad_id: the tokenizer's pad token. As in transformers, a score is read at the last token that is not this one.

    Raises:
        UserError: transformers has no such model for the base's family, or the checkpoint cannot be loaded.
    """
    is_adapter = start is not None and start.manifest.kind == "adapter"
    if is_adapter and section.method == "qlora":
        raise UserError(
            "verifier.start: an adapter becomes part of the weights, which method qlora would round to 4 bits: set model.method to "
            "lora, or start from an export of that model"
        )
    loaded_as = section.model_copy(update={"method": "lora"}) if is_adapter else section
    model = load_model(base, loaded_as, start)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    verifier = _with_head(model, pad_id)
    if section.method == "full":
        return verifier.float()
    adapted = with_adapter(verifier, section, "SEQ_CLS")
    leave_casts_to_autocast(adapted)
    return adapted


def load_verifier(base: Base, section: ModelSection, checkpoint: Checkpoint) -> Model:
    """Return a trained verifier in evaluation mode, on the device on which it runs.

    Raises:
        UserError: the checkpoint is no verifier, or belongs to another base model.
    """
    if checkpoint.manifest.stage != "verifier":
        raise UserError(
            f"{checkpoint.path}: is a {checkpoint.manifest.stage.upper()} model, which has no head for scores: name a verifier, "
            "which verifier_pipeline trains"
        )
    prepare_loading(base, checkpoint)
    model: Model
    if checkpoint.manifest.kind == "full":
        model = load_weights(str(checkpoint.path), section, dict(LOCAL_ONLY), auto=AutoModelForSequenceClassification)
        model.score = _head(model.score.weight)
    else:
        plain = load_model(base, section)
        assert isinstance(plain, PreTrainedModel)
        model = PeftModel.from_pretrained(_with_head(plain, checkpoint.manifest.pad_id), str(checkpoint.path))
        leave_casts_to_autocast(model)
    model.eval()
    return model if section.method == "qlora" else model.to(device())


def _with_head(model: PreTrainedModel, pad_id: int | None) -> Any:
    """Return a causal model's layers with a new, random head for one score. They share the weights."""
    config: Any = model.config
    config.num_labels = 1
    family = config.get_text_config().model_type
    try:
        with torch.device("meta"):
            verifier: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise UserError(f"model.base: {_lacks(family)}") from error
    name = verifier.base_model_prefix
    layers: Any = model.base_model
    if type(getattr(verifier, name, None)) is not type(layers) or not isinstance(
        getattr(verifier, "score", None), torch.nn.Linear
    ):
        raise UserError(f"model.base: {_lacks(family)}")
    setattr(verifier, name, layers)
    weight = torch.empty(1, verifier.score.in_features, device=model.device)
    torch.nn.init.normal_(weight, std=getattr(config.get_text_config(), "initializer_range", None) or 0.02)
    verifier.score = _head(weight)
    verifier.config = config
    config.get_text_config().pad_token_id = pad_id
    for attribute in QUANTISED:
        if hasattr(model, attribute):
            setattr(verifier, attribute, getattr(model, attribute))
    return verifier


def _lacks(family: str) -> str:
    return (
        f"transformers has no sequence classification model of the {family} family with a linear head, which a verifier needs: "
        "choose a model of another family, such as llama or qwen2"
    )


def _head(weight: Tensor) -> ScalarHead:
    head = ScalarHead(weight.shape[1], 1, bias=False, device=weight.device, dtype=torch.float32)
    head.weight = torch.nn.Parameter(weight.detach().float())
    return head
