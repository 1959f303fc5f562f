"""Loading of the base model and of checkpoints, in the precision that suits the machine."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
)

from posttrain.chat.template import Chat, TemplateSettings, prepare_chat
from posttrain.compat.deepspeed_internals import choose_deepspeed_accelerator
from posttrain.compat.glibc import keep_freed_memory
from posttrain.compat.peft_internals import leave_casts_to_autocast
from posttrain.config import LoraSection, ModelSection
from posttrain.errors import UserError
from posttrain.models.adapters import with_adapter
from posttrain.models.base import LOCAL_ONLY, base_source, without_its_code
from posttrain.models.base_checks import missing_weights
from posttrain.models.base_files import Undamaged
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.precision import compute_dtype, device, is_16_bit
from posttrain.models.stored_settings import drop_unused_sampling
from posttrain.progress import disable_library_bars

Model: TypeAlias = PreTrainedModel | PeftModel


def load_chat(base: Base, section: ModelSection, checkpoint: Checkpoint | None = None) -> Chat:
    """Load tokenizer and template of a checkpoint, or of the base model with the template from the settings."""
    if checkpoint is not None:
        manifest = checkpoint.manifest
        _check_template(section, checkpoint)
        with without_its_code(str(checkpoint.path)):
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, **LOCAL_ONLY)
        chat = prepare_chat(tokenizer, more_stop_ids=manifest.stop_ids)
        settings = TemplateSettings(None, manifest.template_kwargs, manifest.template_date or chat.settings.day)
        return replace(chat, template=manifest.template, settings=settings)
    source, options = base_source(base, section)
    with Undamaged(source, "the tokenizer"), without_its_code(source):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    with Undamaged(source, "config.json or generation_config.json"):
        stop_ids = _stop_ids(source, options)
    settings = TemplateSettings(section.chat_template, section.chat_template_kwargs, section.template_date)
    return prepare_chat(tokenizer, settings, stop_ids)


def _check_template(section: ModelSection, checkpoint: Checkpoint) -> None:
    """Check that the settings do not ask for another template than that of a checkpoint."""
    manifest = checkpoint.manifest
    name = section.chat_template and Path(section.chat_template).name
    if name and name != manifest.template:
        raise UserError(
            f"model.chat_template: {section.chat_template} does not match {checkpoint.path}, which was trained with "
            f"{manifest.template}: remove the setting, or train SFT again"
        )
    if section.chat_template_kwargs and section.chat_template_kwargs != manifest.template_kwargs:
        raise UserError(
            f"model.chat_template_kwargs: {section.chat_template_kwargs} does not match {checkpoint.path}, which was trained with "
            f"{manifest.template_kwargs}: remove the setting, or train SFT again"
        )


def _stop_ids(source: str, options: dict[str, Any]) -> list[int]:
    """Return the tokens that end a generation according to the base model."""
    try:
        ids = GenerationConfig.from_pretrained(source, **options).eos_token_id
    except OSError:  # it has no generation_config.json
        ids = AutoConfig.from_pretrained(source, **options).get_text_config().eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])


def load_model(
    base: Base,
    section: ModelSection,
    checkpoint: Checkpoint | None = None,
    *,
    trainable: bool = False,
    frozen: bool = False,
) -> Model:
    """Load a model onto the device on which it runs.

    Args:
        checkpoint: the checkpoint whose weights or adapter to load; None for the base model.
        trainable: whether the adapter of method lora or qlora is trained. It is the checkpoint's adapter, so that training
            starts exactly there, or else a new one.
        frozen: whether the weights are only read, under `autocast`. Linear layers then have them in the precision of their
            products, as autocast would round them: half the memory, the same results.

    Raises:
        UserError: the checkpoint belongs to another base model, or the machine lacks what the method needs.
    """
    if checkpoint is not None and checkpoint.manifest.stage == "verifier":
        raise UserError(
            f"{checkpoint.path}: is a verifier, which scores answers and writes none: name an SFT or DPO model"
        )
    prepare_loading(base, checkpoint)
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
    model = load_weights(source, section, options)
    if kind == "adapter":
        assert checkpoint is not None
        model = PeftModel.from_pretrained(model, str(checkpoint.path), is_trainable=trainable)
        _check_adapter(model, section, checkpoint)
    elif trainable and section.method != "full":
        model = with_adapter(model, section)
    if frozen and section.method == "full" and is_16_bit(section):
        _narrow_linear_layers(model, compute_dtype(section))
    if isinstance(model, PeftModel):
        leave_casts_to_autocast(model)
    return model if section.method == "qlora" else model.to(device())


def _check_adapter(model: PeftModel, section: ModelSection, checkpoint: Checkpoint) -> None:
    """Check that the settings do not ask for another adapter than that of a checkpoint."""
    own: Any = model.peft_config["default"]
    if section.lora != LoraSection() and (own.r, own.lora_alpha) != (section.lora.rank, section.lora.alpha):
        raise UserError(
            f"model.lora: rank {section.lora.rank} and alpha {section.lora.alpha:g} do not match the adapter of "
            f"{checkpoint.path}, which has {own.r} and {own.lora_alpha:g}: remove the settings, or train SFT again"
        )


def prepare_loading(base: Base, checkpoint: Checkpoint | None) -> None:
    """Prepare this process for models, and check that a checkpoint belongs to a base model.

    Raises:
        UserError: the checkpoint belongs to another base model.
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


def _narrow_linear_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round the weights of linear layers, except one that it shares with the embedding."""
    embedding = model.get_input_embeddings().weight
    for layer in model.modules():
        if type(layer) is torch.nn.Linear and layer.weight is not embedding:
            layer.to(dtype)


def load_weights(
    source: str, section: ModelSection, options: dict[str, Any], auto: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """Load the weights of a folder or a Hub model, in the precision that the method trains or applies them in.

    Args:
        options: keyword arguments for `from_pretrained`.
        auto: class of transformers that chooses the model's class.

    Raises:
        UserError: the machine lacks what the method needs, or weights are missing.
    """
    # An optimizer step is far smaller than the resolution of bf16, so trained weights stay in fp32.
    dtype = compute_dtype(section) if section.method != "full" else torch.float32
    options = {**options, "dtype": dtype, "use_safetensors": True}
    if section.attention not in ("auto", "flex"):  # flex is for flat rows, which choose it themselves
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
    with without_its_code(source), _attention_supported(section):
        model, info = auto.from_pretrained(source, **options, output_loading_info=True)
    if problem := missing_weights(source, info):
        raise UserError(problem)
    if unused := drop_unused_sampling(model):
        _announce_unused(source, tuple(unused))
    loaded: PreTrainedModel = model
    return loaded


@functools.cache
def _announce_unused(source: str, names: tuple[str, ...]) -> None:
    print(
        f"Generation settings: {', '.join(names)} of {source} are left out, because do_sample is false and they have no effect"
    )


@contextlib.contextmanager
def _attention_supported(section: ModelSection) -> Iterator[None]:
    """Turn transformers' errors about an attention that the model or the machine lacks into a `UserError`."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if section.attention == "auto" or not any(word in str(error).lower() for word in ("attention", "attn")):
            raise
        raise UserError(
            f"model.attention: {section.attention} does not work with this model on this machine "
            f"({str(error).strip().splitlines()[0]}): set it to auto"
        ) from error
