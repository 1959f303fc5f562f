"""Conversions of values that a lookup table cannot express, such as other units or several settings for one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from posttrain.config.equivalents.entry import Equivalent
from posttrain.config.equivalents.fates import NotCarriedOver, NotNeeded, Reading
from posttrain.config.equivalents.trainer_names import ATTENTION

Settings = dict[str, Any]
"""Our dotted settings and their values."""
Rule = Callable[[Any, Equivalent, Reading], Settings]

TEMPLATES = {"chatml": "chatml", "alpaca": "alpaca"}


def same(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return the value unchanged, or the entry's equivalent for it."""
    if not entry.values:
        return {entry.ours: value}
    key = value if isinstance(value, (str, bool, int, float)) else str(value)
    if key not in entry.values:
        offered = ", ".join(dict.fromkeys(str(ours) for ours in entry.values.values()))
        raise NotCarriedOver(f"{entry.ours} offers {offered} only, and its default is used")
    return {entry.ours: entry.values[key]}


def method(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return model.method, from the tool's two settings for adapters and 4-bit bases."""
    found = training_method(reading)
    if entry.name in ("load_in_4bit", "quantization_bit") and value not in (False, 0) and found != "qlora":
        raise NotCarriedOver("only 4-bit bases of an adapter are offered (model.method qlora)")
    return {entry.ours: found}


def training_method(reading: Reading) -> str:
    """Return full, lora or qlora.

    Raises:
        NotCarriedOver: the file uses another method.
    """
    if reading.tool.key == "trl":
        adapter, four_bits = bool(reading.get("use_peft")), bool(reading.get("load_in_4bit"))
    elif reading.tool.key == "llama-factory":
        kind = reading.get("finetuning_type", "lora")
        if kind not in ("lora", "full"):
            raise NotCarriedOver(f"{kind} is not offered, only full, lora and qlora; all weights are trained")
        adapter, four_bits = kind == "lora", str(reading.get("quantization_bit")) == "4"
    else:
        kind = reading.get("adapter")
        if kind not in (None, "lora", "qlora"):
            raise NotCarriedOver(f"{kind} is not offered, only full, lora and qlora; all weights are trained")
        adapter, four_bits = kind is not None, kind == "qlora" or bool(reading.get("load_in_4bit"))
    return "full" if not adapter else "qlora" if four_bits else "lora"


def lora(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """A setting of the adapter, if an adapter is trained."""
    try:
        full = training_method(reading) == "full"
    except NotCarriedOver:
        full = True
    if full:
        raise NotNeeded("no adapter is trained")
    if value == "2 x lora_rank":
        value = 2 * reading.get("lora_rank", 8)
    return {entry.ours: value}


def lora_target(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """The layers that get an adapter: all-linear or a list."""
    lora(value, entry, reading)
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    if reading.get("lora_target_linear") or {"all", "all-linear"} & set(names):
        return {entry.ours: "all-linear"}
    return {entry.ours: names}


def lora_target_linear(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return all-linear if the flag is set."""
    if not value:
        raise NotNeeded("is off")
    return lora("all-linear", entry, reading)


def max_steps(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.max_steps, if there is a limit."""
    if isinstance(value, int) and value <= 0:
        raise NotNeeded("means no limit, as here without the setting")
    return {entry.ours: value}


def warmup_steps(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.warmup_steps. transformers 5 reads a number below 1 as a share of the training."""
    if isinstance(value, (int, float)) and 0 < value < 1:
        return warmup_ratio(value, entry, reading)
    limit = reading.get("max_steps", -1)
    if isinstance(value, (int, float)) and 0 < limit <= value:
        raise NotCarriedOver(f"the warm-up of {value} steps would not end before max_steps {limit}")
    return {entry.ours: int(value) if isinstance(value, float) and value.is_integer() else value}


def warmup_ratio(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.warmup_steps from a ratio, if max_steps sets the number of steps."""
    steps = reading.get("warmup_steps", 0)
    if entry.name == "warmup_ratio" and steps:
        raise NotNeeded("warmup_steps comes first")
    if value == 0:
        return {entry.ours: 0}
    if (limit := reading.get("max_steps", -1)) > 0:
        return {entry.ours: math.ceil(value * limit)}
    raise NotCarriedOver(
        f"dpo.warmup_steps counts steps, and their number depends on the data: set it to {value:g} times the optimisation steps "
        "that `posttrain check` prints"
    )


def eval_steps(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.eval_steps: a number of steps, or a share of the training."""
    strategy = reading.get("eval_strategy", reading.get("evaluation_strategy"))
    if strategy == "epoch":
        raise NotNeeded(f"has no effect in {reading.tool.name} with eval_strategy epoch")
    return {entry.ours: int(value) if isinstance(value, float) and value >= 1 and value.is_integer() else value}


def eval_strategy(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.eval_steps, if validation is measured once per epoch."""
    if value == "steps":
        raise NotNeeded("validation is always measured by steps")
    if value == "epoch":
        return evals_per_epoch(1, entry, reading)
    raise NotCarriedOver("validation is always measured during training; data.validation_size: 0 turns it off")


def evals_per_epoch(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.eval_steps as a share of the training, if the number of epochs is known."""
    if not value:
        raise NotCarriedOver("validation is always measured during training; data.validation_size: 0 turns it off")
    if reading.get("max_steps", -1) > 0:
        raise NotCarriedOver(
            "with max_steps, the length of an epoch is not known: set dpo.eval_steps to a number of steps"
        )
    default = 3 if reading.tool.key != "axolotl" else 1
    n_times = value * reading.get("num_epochs", reading.get("num_train_epochs", default))
    if n_times <= 1:
        raise NotCarriedOver("validation cannot be measured only at the end; dpo.eval_steps keeps its default")
    return {entry.ours: round(1 / n_times, 6)}


def logging_steps(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.logging_steps."""
    if isinstance(value, float) and not value.is_integer():
        raise NotCarriedOver("dpo.logging_steps is a number of steps, not a share of the training")
    return {entry.ours: int(value)}


def bf16(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return model.precision."""
    if value in (True, "full"):
        return {entry.ours: "bf16"}
    if value == "auto":
        return {entry.ours: "auto"}
    if any(reading.get(name) for name in ("fp16", "float16", "bf16", "bfloat16", "pure_bf16")):
        raise NotNeeded("another setting decides the precision")
    if entry.name != "bf16":
        raise NotNeeded("is off")
    return {entry.ours: "fp32"}


def fp16(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Always raises, because fp16 is not supported."""
    if not value:
        raise NotNeeded("is off, and fp16 is not offered")
    raise NotCarriedOver("fp16 is not offered; model.precision auto takes bf16 on a GPU, or set fp32")


def attention(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return model.attention. FlashAttention is not carried over, because flat batches do not need it."""
    if value in ("auto", "disabled", "fa2", "flash_attention_2"):
        if value == "auto":
            return {entry.ours: "auto"}
        if value == "disabled":
            return {entry.ours: "eager"}
        raise NotNeeded(
            "flat batches attend by segments and need no FlashAttention; for padded batches, set model.layout: padded and "
            "model.attention: flash_attention_2"
        )
    if value not in ATTENTION:
        raise NotCarriedOver(f"model.attention does not offer {value}; auto chooses one")
    return {entry.ours: ATTENTION[value]}


def attention_flag(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return model.attention, from axolotl's older flags."""
    if not value:
        raise NotNeeded("is off")
    names = {"flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager"}
    return attention(names.get(entry.name, entry.name), entry, reading)


def trust_remote_code(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return model.trust_remote_code, if the model's revision is a commit."""
    if not value:
        return {entry.ours: False}
    revision = reading.get("model_revision", reading.get("revision_of_model", ""))
    if not re.fullmatch("[0-9a-f]{40}", str(revision)):
        raise NotCarriedOver(
            "most models need no remote code; if this one does, read the code, set model.revision to its commit (40 hex digits), "
            "and set model.trust_remote_code: true"
        )
    return {entry.ours: True}


def template(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return model.chat_template, for the templates that are built in here too."""
    datasets = reading.get("datasets", []) if reading.tool.key == "axolotl" else []
    if datasets and all(str(item.get("type")).startswith("chatml") for item in datasets if isinstance(item, dict)):
        raise NotNeeded("the type of the datasets decides: chatml")
    if value in ("tokenizer_default", "jinja"):
        raise NotNeeded(
            "the tokenizer's own chat template is used" if value != "jinja" else "chat_template_jinja sets the template"
        )
    if value not in TEMPLATES:
        raise NotCarriedOver(
            f"the tokenizer's own chat template is used; compare it with {reading.tool.name}'s {value}, and where they differ, "
            "name a .jinja file in model.chat_template"
        )
    return {entry.ours: TEMPLATES[value]}


def chat_template_path(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return model.chat_template, which must be a .jinja file."""
    if not str(value).endswith(".jinja"):
        raise NotCarriedOver("model.chat_template takes a .jinja file: save the template as one")
    return {entry.ours: value}


def max_length(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.max_length, and dpo.max_prompt_length with the same value if the file sets no limit for prompts."""
    settings = {entry.ours: value}
    if not {"max_prompt_length", "max_prompt_len"} & reading.settings.keys():
        settings["dpo.max_prompt_length"] = value
    return settings


def max_prompt_length(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.max_prompt_length, at most the limit of the whole pair."""
    limits = (reading.get(name) for name in ("max_length", "sequence_len"))
    longest = next((limit for limit in limits if limit is not None), value)
    if value > longest:
        return {entry.ours: longest}
    return {entry.ours: value}


def validation_size(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return data.validation_size, if the value is a share. A number of rows is not supported."""
    if value > 1:
        raise NotCarriedOver(
            f"data.validation_size is a share of the prompts (0 to 0.5), not a number of rows ({value:g})"
        )
    return {entry.ours: value}


def optimizer(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.optimizer. The 8-bit optimizer does not support sharded weights."""
    settings = same(value, entry, reading)
    if settings[entry.ours] == "adamw_8bit" and any(reading.get(name) for name in ("fsdp", "fsdp_config", "deepspeed")):
        raise NotCarriedOver("the 8-bit optimizer cannot be used with dpo.sharding: adamw is used")
    return settings


def fsdp(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.sharding, if FSDP is on."""
    if not value:
        raise NotNeeded("is off")
    _refuse_sharded_4_bit(reading)
    return {entry.ours: "fsdp"}


def deepspeed(value: Any, entry: Equivalent, reading: Reading) -> Settings:
    """Return dpo.sharding, from the stage in DeepSpeed's config, or in the name of its file."""
    if not value:
        raise NotNeeded("is off")
    _refuse_sharded_4_bit(reading)
    if isinstance(value, dict):
        stage = str(value.get("zero_optimization", {}).get("stage"))
    else:
        found = re.search(r"z(?:ero)?[_-]?(?:stage)?[_-]?([0-3])", str(value).lower())
        stage = found.group(1) if found else ""
    if stage not in ("2", "3"):
        raise NotCarriedOver("dpo.sharding offers zero2 and zero3: set it by hand")
    return {entry.ours: f"zero{stage}"}


def _refuse_sharded_4_bit(reading: Reading) -> None:
    if training_method(reading) == "qlora":
        raise NotCarriedOver("a 4-bit base is not sharded here: set model.method: lora to shard it")
