"""Estimates of the memory that a model and its batches need, from the model's shape."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open

from posttrain.config import ModelSection, TrainSection
from posttrain.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that determine how much memory it needs."""

    n_parameters: int
    n_layers: int
    hidden_size: int
    n_adapter_parameters_per_rank: int
    """For LoRA on every linear layer: the sum of the layers' input and output sizes."""
    inner_size: int
    """Width of the MLP; of a mixture of experts: of all experts that a token passes."""
    query_size: int
    """Width of the queries of all heads."""
    key_size: int
    n_vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any], n_parameters: int, n_adapter_parameters_per_rank: int) -> Shape | None:
        """Return the shape by a config of transformers; None if it does not tell the number of layers and their width.

        Args:
            config: of a language model, as `config.json` has it.
        """
        n_layers, hidden = (
            _first(config, *names) for names in (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"))
        )
        if not n_parameters or n_layers is None or hidden is None:
            return None
        n_heads = _first(config, "num_attention_heads", "n_head") or 1
        head = _first(config, "head_dim") or hidden // n_heads
        n_key_heads = _first(config, "num_key_value_heads") or n_heads
        inner = _first(config, "moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
        n_experts = _first(config, "num_experts_per_tok") or 1
        n_vocabulary = _first(config, "vocab_size") or 0
        return cls(
            n_parameters, n_layers, hidden, n_adapter_parameters_per_rank, inner * n_experts, n_heads * head, n_key_heads * head,
            n_vocabulary,
        )  # fmt: skip


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of these settings that is set."""
    return next((int(config[name]) for name in names if config.get(name) is not None), None)


DEMO = Shape(
    n_parameters=1_912_896, n_layers=4, hidden_size=192, n_adapter_parameters_per_rank=14_592, inner_size=512, query_size=192,
    key_size=192, n_vocabulary=738,
)  # fmt: skip
"""The demo's model, which need not be built for an estimate."""


def read_shape(section: ModelSection) -> Shape | None:
    """Return the shape of the base model from its config and the headers of its weights; None if it is not on this machine."""
    if section.base == "demo":
        return DEMO
    folder = local_base(section.base)
    if folder is None:
        cached = try_to_load_from_cache(section.base, "config.json", revision=section.revision)
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    n_parameters = n_per_rank = 0
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    shape = tensors.get_slice(name).get_shape()
                    n_parameters += math.prod(shape)
                    if len(shape) == 2 and "embed" not in name and "lm_head" not in name:
                        n_per_rank += sum(shape)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"model.base: {section.base} is not a complete transformers model ({error}): download it again"
        ) from error
    return Shape.of(config.get("text_config", config), n_parameters, n_per_rank)


def local_base(base: str) -> Path | None:
    """Return the folder of a local base model; None for a Hub id.

    Raises:
        UserError: the name is neither.
    """
    if (folder := Path(base).expanduser()).is_dir():
        return folder
    if is_hub_id(base):
        return None
    raise UserError(
        f"model.base: {base} is neither a folder, seen from {Path.cwd()}, nor a Hub id (`organisation/name`)"
    )


def is_hub_id(name: str) -> bool:
    """Return whether a name can be a model on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "/", "~"))


def weights_gib(section: TrainSection, model: ModelSection, shape: Shape, in_16_bit: bool) -> float:
    """Return the estimated memory of weights, gradients and optimizer state in GiB per process."""
    n_shards = 1 if section.sharding == "none" else 2 if section.processes == "auto" else section.processes
    n_weight_shards = 1 if section.sharding == "zero2" else n_shards
    own_copy = 4 if section.sharding in ("zero2", "zero3") else 0  # the fp32 copy that DeepSpeed updates
    trained_bytes = 4 / n_weight_shards + (4 + own_copy + (2 if section.optimizer == "adamw_8bit" else 8)) / n_shards
    trained = trained_parameters(model, shape) * trained_bytes / GIB
    return trained if model.method == "full" else loaded_gib(model, shape, in_16_bit) / n_weight_shards + trained


def trained_parameters(model: ModelSection, shape: Shape) -> int:
    """Return the number of trained parameters."""
    return shape.n_parameters if model.method == "full" else shape.n_adapter_parameters_per_rank * model.lora.rank


def loaded_gib(model: ModelSection, shape: Shape, in_16_bit: bool) -> float:
    """Return the estimated memory of the base model's weights in GiB as they are loaded."""
    bytes_each = {"full": 4.0, "lora": 2.0 if in_16_bit else 4.0, "qlora": 0.55}
    return shape.n_parameters * bytes_each[model.method] / GIB
