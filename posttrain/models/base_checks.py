"""Checks of a base model that read its config, tokenizer and weight names, but load no weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.config import ModelSection
from posttrain.models.base import base_source, without_its_code
from posttrain.models.base_files import DAMAGE
from posttrain.models.checkpoint import Base
from posttrain.models.positions import batch_dependent_above, n_positions

QUANTISERS = {
    "gptq": ("gptqmodel",),
    "awq": ("gptqmodel", "awq"),
    "bitsandbytes": ("bitsandbytes",),
    "hqq": ("hqq",),
    "aqlm": ("aqlm",),
    "eetq": ("eetq",),
    "quanto": ("optimum.quanto",),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
    "auto-round": ("auto_round",),
    "vptq": ("vptq",),
    "spqr": ("spqr_quant",),
    "higgs": ("flute",),
    "fp_quant": ("fp_quant",),
}
"""Packages, any of which loads weights of a `quant_method` of transformers."""


def base_problems(base: Base, section: ModelSection, lengths: Mapping[str, int], *, weights: bool = True) -> list[str]:
    """Return what would make a training from this base fail or give a wrong model, one message each.

    Args:
        lengths: number of tokens that a setting asks the model to read, by the setting's name.
        weights: whether to compare the names and shapes of the base's weights with those of the model.
    """
    source, options = base_source(base, section)
    try:
        with without_its_code(source):
            config = AutoConfig.from_pretrained(source, **options)
    except (OSError, *DAMAGE) as error:
        return [
            f"model.base: transformers cannot read the config of {section.base} ({_first_line(error)}): check the folder"
        ]
    found = [*_code(config, section), *_quantisation(config, section), *_positions(config, lengths)]
    if found:  # the weights of these may not be readable here
        return found
    found = list(_tokens(config, section, source, options))
    return [*found, *_weights(section, source, options)] if weights else found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _code(config: Any, section: ModelSection) -> Iterator[str]:
    own = {"AutoConfig", "AutoModelForCausalLM"} & set(getattr(config, "auto_map", None) or {})
    if section.trust_remote_code and own and section.method == "full":
        yield (
            f"model.method: full training of {section.base} would put the model's own code into the checkpoint, which may not "
            "contain code: set model.method to lora, or choose a model that transformers supports"
        )


def _quantisation(config: Any, section: ModelSection) -> Iterator[str]:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    given = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(getattr(given.get("quant_method"), "value", given.get("quant_method")))
    if section.method == "full":
        yield (
            f"model.method: full cannot train {section.base}, whose weights are quantised ({method}): set model.method to lora, "
            "or model.base to the model before quantisation"
        )
    if section.method == "qlora" and method != "bitsandbytes":
        yield (
            f"model.method: qlora would quantise {section.base} again, whose weights are quantised already ({method}): set "
            "model.method to lora, or model.base to the model before quantisation"
        )
    packages = QUANTISERS.get(method, ())
    if packages and not any(map(_installed, packages)):
        yield (
            f"model.base: the weights of {section.base} are quantised with {method}, which needs the package "
            f"{' or '.join(packages)}: install it, or set model.base to the model before quantisation"
        )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def _positions(config: Any, lengths: Mapping[str, int]) -> Iterator[str]:
    limit = n_positions(config)
    uniform = batch_dependent_above(config)
    for name, length in lengths.items():
        if limit is not None and length > limit:
            yield f"{name} is {length}, but the model has {limit} positions: set it to at most {limit}, or choose another base"
        elif uniform is not None and length > uniform:
            yield (
                f"{name} is {length}, but above {uniform} tokens the positions of this model (rope of a kind that changes with "
                f"the length) depend on the longest row of a batch, so a row's log-probabilities would too: set it to at most "
                f"{uniform}"
            )


def _tokens(config: Any, section: ModelSection, source: str, options: dict[str, Any]) -> Iterator[str]:
    rows: Any = getattr(config.get_text_config(), "vocab_size", None)
    try:
        with without_its_code(source):
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        tokenizer = None
        reason = _first_line(error)
    if tokenizer is None or not tokenizer.get_vocab():
        why = "its vocabulary is empty" if tokenizer is not None else reason
        yield (
            f"model.base: {section.base} has no tokenizer that transformers can read ({why}): save the tokenizer of the model "
            "into the same folder (tokenizer.json and tokenizer_config.json)"
        )
        return
    if "AutoTokenizer" in (tokenizer.init_kwargs.get("auto_map") or {}) and section.trust_remote_code:
        yield (
            f"model.base: the tokenizer of {section.base} is code of its own, which a checkpoint may not contain: choose a model "
            "whose tokenizer transformers supports"
        )
    named = {
        name: token
        for name in ("pad_token", "eos_token", "bos_token", "unk_token")
        if (token := getattr(tokenizer, name))
    }
    beyond = {name: token for name, token in named.items() if rows and tokenizer.convert_tokens_to_ids(token) >= rows}
    if beyond:
        parts = (f"{name} {token} has id {tokenizer.convert_tokens_to_ids(token)}" for name, token in beyond.items())
        yield (
            f"model.base: {', '.join(parts)}, but the embedding of {section.base} has {rows} rows (ids 0 to {rows - 1}), so "
            f"training would read beyond it: enlarge it with `model.resize_token_embeddings({len(tokenizer)})` and save the "
            "model, or set the token to one within the embedding in tokenizer_config.json"
        )


def _weights(section: ModelSection, source: str, options: dict[str, Any]) -> Iterator[str]:
    """Compare the names and shapes of the weights with those of the model. No weight is read."""
    try:
        with without_its_code(source):
            _, info = AutoModelForCausalLM.from_pretrained(
                source, **options, device_map="meta", output_loading_info=True, use_safetensors=True
            )
    except (OSError, ValueError, RuntimeError, ImportError, TypeError, AttributeError, KeyError) as error:
        yield f"model.base: transformers cannot load {section.base} ({_first_line(error)}): check the model, or choose another"
        return
    if problem := missing_weights(section.base, info):
        yield problem


def missing_weights(name: str, info: Mapping[str, Any]) -> str | None:
    """Return a message about weights that the model has but its files lack, or have in another shape; None if there are none.

    Args:
        info: what `from_pretrained` returns with `output_loading_info`.
    """
    missing = sorted(info.get("missing_keys", ()))
    wrong = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ()))
    if not missing and not wrong:
        return None
    what = " and ".join(
        f"{len(names)} {kind} (first: {names[0]})"
        for kind, names in (("are missing", missing), ("have another shape", wrong))
        if names
    )
    return (
        f"model.base: of the weights that {name} should have, {what}. They would be random, and training would not show it: "
        "download or save the model again, and check that its config.json belongs to its weights"
    )
