"""Loading of the base model and of checkpoints, in the precision that suits the machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from posttrain.chat.template import Chat, prepare_chat
from posttrain.compat.deepspeed_internals import choose_deepspeed_accelerator
from posttrain.compat.glibc import keep_freed_memory
from posttrain.compat.peft_internals import leave_casts_to_autocast
from posttrain.config import LoraSection, ModelSection
from posttrain.errors import UserError
from posttrain.models.base import LOCAL_ONLY, base_source, without_its_code
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.precision import device, uses_bf16
from posttrain.progress import disable_library_bars

Model: TypeAlias = PreTrainedModel | PeftModel


def load_chat(base: Base, section: ModelSection, checkpoint: Checkpoint | None = None) -> Chat:
    """Load tokenizer and template of a checkpoint, or of the base model with the template from the settings."""
    if checkpoint is not None:
        template = checkpoint.manifest.template
        if section.chat_template and Path(section.chat_template).name != template:
            raise UserError(
                f"model.chat_template: {section.chat_template} does not match {checkpoint.path}, which was trained with "
                f"{template}: remove the setting, or train SFT again"
            )
        with without_its_code(str(checkpoint.path)):
            chat = prepare_chat(AutoTokenizer.from_pretrained(checkpoint.path, **LOCAL_ONLY), None)
        return Chat(chat.tokenizer, template, chat.stop_id)
    source, options = base_source(base, section)
    with without_its_code(source):
        return prepare_chat(AutoTokenizer.from_pretrained(source, **options), section.chat_template)


def load_model(
    base: Base, section: ModelSection, checkpoint: Checkpoint | None = None, *, trainable: bool = False
) -> Model:
    """Load a model onto the device on which it runs.

    Args:
        checkpoint: the checkpoint whose weights or adapter to load; None for the base model.
        trainable: whether the adapter of method lora or qlora is trained. It is the checkpoint's adapter, so that training
            starts exactly there, or else a new one.

    Raises:
        UserError: the checkpoint belongs to another base model, or the machine lacks what the method needs.
    """
    disable_library_bars()
    choose_deepspeed_accelerator()
    if checkpoint is not None and checkpoint.manifest.base.digest != base.digest:
        raise UserError(
            f"{checkpoint.path}: was trained from {checkpoint.manifest.base.id} ({checkpoint.manifest.base.digest[:16]}), but "
            f"model.base is {base.id} ({base.digest[:16]}): set model.base to the model that it was trained from"
        )
    if device().type == "cpu":
        keep_freed_memory()
    kind = checkpoint.manifest.kind if checkpoint is not None else "base"
    if kind == "adapter" and section.method == "full":
        assert checkpoint is not None
        raise UserError(
            f"model.method: full cannot continue from {checkpoint.path}, which is an adapter: set it to lora"
        )
    if kind == "full":
        assert checkpoint is not None
        source, options = str(checkpoint.path), dict(LOCAL_ONLY)
    else:
        source, options = base_source(base, section)
    model = _load_weights(source, section, options)
    if kind == "adapter":
        assert checkpoint is not None
        model = PeftModel.from_pretrained(model, str(checkpoint.path), is_trainable=trainable)
        own = model.peft_config["default"]
        if section.lora != LoraSection() and (own.r, own.lora_alpha) != (section.lora.rank, section.lora.alpha):
            raise UserError(
                f"model.lora: rank {section.lora.rank} and alpha {section.lora.alpha:g} do not match the adapter of "
                f"{checkpoint.path}, which has {own.r} and {own.lora_alpha:g}: remove the settings, or train SFT again"
            )
    elif trainable and section.method != "full":
        model = _with_adapter(model, section)
    if isinstance(model, PeftModel):
        leave_casts_to_autocast(model)
    return model if section.method == "qlora" else model.to(device())


def _load_weights(source: str, section: ModelSection, options: dict[str, Any]) -> PreTrainedModel:
    # An optimizer step is far smaller than the resolution of bf16, so trained weights stay in fp32.
    dtype = torch.bfloat16 if uses_bf16(section) and section.method != "full" else torch.float32
    options = {**options, "dtype": dtype, "use_safetensors": True}
    if section.attention != "auto":
        options["attn_implementation"] = section.attention
    if section.method == "qlora":
        if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "model.method: qlora needs a CUDA GPU and bitsandbytes, which this machine lacks: set it to lora, or run on "
                "a GPU with `pip install -e '.[gpu]'`"
            )
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        options["device_map"] = {"": device()}
    with without_its_code(source):
        return AutoModelForCausalLM.from_pretrained(source, **options)


def _with_adapter(model: PreTrainedModel, section: ModelSection) -> PeftModel:
    if section.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = section.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        if "not found in the base model" not in str(error):  # PEFT 0.20 has no exception of its own
            raise
        names = sorted(
            {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        )
        raise UserError(
            f"model.lora.target_modules: no layer of the model matches {lora.target_modules}: name some of "
            f"{', '.join(names)}, or use all-linear"
        ) from error
    assert isinstance(adapted, PeftModel)
    return adapted
