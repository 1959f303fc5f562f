"""Estimates of the memory that a model and its batches need, from the model's shape."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

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


def read_shape(section: ModelSection) -> Shape | None:
    """Return the shape of the base model from its config and the headers of its weights; None if it is not on this machine."""
    if section.base == "demo":
        return Shape(n_parameters=1_912_896, n_layers=4, hidden_size=192, n_adapter_parameters_per_rank=14_592)
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
    config = config.get("text_config", config)
    n_layers = config.get("num_hidden_layers", config.get("n_layer"))
    hidden_size = config.get("hidden_size", config.get("n_embd"))
    if not n_parameters or n_layers is None or hidden_size is None:
        return None
    return Shape(n_parameters, n_layers, hidden_size, n_per_rank)


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
    if model.method == "full":
        return shape.n_parameters * trained_bytes / GIB
    adapter = shape.n_adapter_parameters_per_rank * model.lora.rank
    return loaded_gib(model, shape, in_16_bit) / n_weight_shards + adapter * trained_bytes / GIB


def loaded_gib(model: ModelSection, shape: Shape, in_16_bit: bool) -> float:
    """Return the estimated memory of the base model's weights in GiB as they are loaded."""
    bytes_each = {"full": 4.0, "lora": 2.0 if in_16_bit else 4.0, "qlora": 0.55}
    return shape.n_parameters * bytes_each[model.method] / GIB


def activations_gib(
    section: TrainSection, shape: Shape, sequences_per_row: int, in_16_bit: bool, gradient_checkpointing: bool
) -> float:
    """Return the estimated memory in GiB of the activations that a step keeps, if every row has `max_length` tokens.

    34 bytes per token, layer and hidden unit in 16 bit (2 with gradient checkpointing), twice as much in 32 bit.

    Source: Korthikanti et al. 2022, equation 2, without the attention matrix, which SDPA does not keep.
    """
    tokens = section.batch_size * sequences_per_row * section.max_length
    per_unit = (2 if gradient_checkpointing else 34) * (1 if in_16_bit else 2)
    return tokens * shape.n_layers * shape.hidden_size * per_unit / GIB
