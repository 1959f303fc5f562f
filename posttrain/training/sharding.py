"""Sharding of weights, gradients and optimizer state among the processes of a training stage.

FSDP2 is PyTorch's; ZeRO-2 and ZeRO-3 (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054) are DeepSpeed's. Tested with
transformers 5.23, accelerate 1.15, torch 2.13 and DeepSpeed 0.19, with two and three processes on a CPU (gloo).
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import save_fsdp_model, save_fsdp_optimizer
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import Trainer

from posttrain.compat.deepspeed_internals import (
    choose_deepspeed_accelerator,
    is_partitioned,
    own_optimizer_state,
    own_share,
)
from posttrain.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""State of AdamW for each weight, as PyTorch names it."""
_WEIGHTS, _OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_STEP = "step"


def _zero(stage: int) -> dict[str, Any]:
    """Return DeepSpeed's settings. Transformers replaces `auto` by the training's settings or by a size that fits the model."""
    sizes = {2: ["reduce_bucket_size"]}
    sizes[3] = [*sizes[2], "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"]
    numbers = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"]
    zero = {"stage": stage, **dict.fromkeys(sizes[stage], "auto")}
    return {"zero_optimization": zero, **dict.fromkeys(numbers, "auto")}


ARGUMENTS: dict[str, dict[str, Any]] = {
    "none": {},
    "fsdp": {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # gather one decoder layer at a time
            "reshard_after_forward": True,  # False needs less communication and more memory
            "state_dict_type": "FULL_STATE_DICT",  # one file with the whole model
        },
        # Shard gradients after each micro-batch. Otherwise every process keeps whole gradients until the last one.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    },
    "zero2": {"deepspeed": _zero(2)},
    "zero3": {"deepspeed": _zero(3)},
}
"""Keyword arguments of transformers' TrainingArguments for each value of the setting."""


def sharding_arguments(sharding: str) -> dict[str, Any]:
    """Return keyword arguments of TrainingArguments, which may be modified, and set what the libraries read elsewhere.

    Raises:
        UserError: DeepSpeed is not installed.
    """
    choose_deepspeed_accelerator()
    arguments = copy.deepcopy(ARGUMENTS[sharding])
    if sharding == "fsdp":
        # As `accelerate launch` does. On GPUs it adds gloo to NCCL, for tensors in main memory.
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    if "deepspeed" in arguments:
        if not importlib.util.find_spec("deepspeed"):
            raise UserError(
                f"sharding: {sharding} needs DeepSpeed, which is not installed: set it to fsdp, or `pip install -e '.[deepspeed]'`"
            )
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed 0.19 calls functions in every step that torch 2.13 has renamed.
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
        arguments |= {"use_cpu": False, "bf16": False}  # see keep_precision
        if not torch.cuda.is_available():  # otherwise transformers assumes a single process
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
            PartialState(backend="gloo", timeout=timedelta(minutes=30))
            arguments["accelerator_config"] = {"use_configured_state": True}
    return arguments


def is_sharded(trainer: Trainer) -> bool:
    """Return whether each process holds only a part of the trained weights or of their optimizer state."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def keep_precision(trainer: Trainer, dtype: torch.dtype) -> None:
    """Keep trained weights, their gradients and log-probabilities in fp32.

    FSDP gathers the weights of a layer in this precision. Autocast would make copies of the gathered fp32 weights of all layers
    and keep them until the forward pass ends. DeepSpeed runs under autocast, as a single process does.
    """
    if trainer.is_fsdp_enabled:
        plain, narrow = MixedPrecisionPolicy(), MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = plain if dtype == torch.float32 else narrow
    if trainer.is_deepspeed_enabled and dtype != torch.float32:
        model: Any = trainer.model
        model.forward = torch.autocast(trainer.args.device.type, dtype)(model.forward)


def save_shares(trainer: Trainer, folder: str) -> None:
    """Write the whole weights and optimizer state of a sharded training. Every process must call this; the first one writes."""
    model: Any = trainer.model
    if trainer.is_fsdp_enabled:
        plugin, accelerator = trainer.accelerator.state.fsdp_plugin, trainer.accelerator
        try:
            save_fsdp_model(plugin, accelerator, model, folder, adapter_only=True)
        finally:  # all processes take part, also if the first one could not write the weights
            save_fsdp_optimizer(plugin, accelerator, trainer.optimizer, model, folder)
        return
    # DeepSpeed's own files are pickles, which can run code, and only the same number of processes can load them.
    first = trainer.is_world_process_zero()
    weights, optimizer = _copies(_trained(model), first), _optimizer_state(trainer, first)
    if first:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(weights, Path(folder) / _WEIGHTS)
        save_file(optimizer, Path(folder) / _OPTIMIZER)


@torch.no_grad()
def load_zero_shares(trainer: Trainer, folder: str) -> None:
    """Load what `save_shares` wrote for ZeRO, with any number of processes. Every process must call this."""
    # Read one tensor at a time: a process may not have enough memory for all.
    with safe_open(Path(folder) / _WEIGHTS, "pt") as weights, safe_open(Path(folder) / _OPTIMIZER, "pt") as optimizer:
        for own in _own_optimizer_state(trainer):
            own[_STEP].copy_(optimizer.get_tensor(_STEP))
        for name, parameter in _trained(trainer.model):
            whole = weights.get_tensor(name)
            with _whole(parameter, writer=0):
                parameter.copy_(whole)
            _set_share(parameter, whole)
            for key in MOMENTS:
                _set_share(parameter, optimizer.get_tensor(f"{name}.{key}"), key)


def _set_share(parameter: Any, whole: torch.Tensor, key: str | None = None) -> None:
    """Set this process's share of a weight, or of one moment of AdamW."""
    from deepspeed import utils

    if is_partitioned(parameter):
        share = own_share(parameter, whole)
        if key:
            utils.safe_set_local_optimizer_state(parameter, share, key)
        else:
            utils.safe_set_local_fp32_param(parameter, share)
    elif key:
        utils.safe_set_full_optimizer_state(parameter, whole, key)
    else:
        utils.safe_set_full_fp32_param(parameter, whole)


def _optimizer_state(trainer: Trainer, here: bool) -> dict[str, torch.Tensor]:
    """Return ZeRO's whole optimizer state in main memory, where `here` is true. Every process must call this."""
    from deepspeed.utils import safe_get_full_optimizer_state

    state = {_STEP: _own_optimizer_state(trainer)[0][_STEP].to("cpu", copy=True)}
    for name, parameter in _trained(trainer.model):
        for key in MOMENTS:
            whole = safe_get_full_optimizer_state(parameter, key)
            if here:
                state[f"{name}.{key}"] = whole.to("cpu", copy=True)
    return state


def _own_optimizer_state(trainer: Trainer) -> list[dict[str, torch.Tensor]]:
    return own_optimizer_state(trainer.model_wrapped, _STEP, MOMENTS)


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def gather(trainer: Trainer) -> None:
    """Gather a sharded model in the main memory of the first process. Every process must call this."""
    model: Any = trainer.model
    if trainer.is_fsdp_enabled:
        weights = trainer.accelerator.get_state_dict(model)  # empty except in the first process
    elif trainer.is_deepspeed_enabled:
        weights = _copies(model.named_parameters(), trainer.is_world_process_zero())
    else:
        return
    for name, tensor in weights.items():
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, torch.nn.Parameter(tensor, requires_grad=False))
    if trainer.is_world_process_zero():
        model.tie_weights()


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the trained weights in main memory, only in the first process if sharded. Every process must call this."""
    if isinstance(model, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        gathered: dict[str, Any] = get_model_state_dict(model, options=options)
        return gathered
    return _copies(_trained(model), here=not has_shares(model) or torch.distributed.get_rank() == 0)


def has_shares(model: torch.nn.Module) -> bool:
    """Return whether each process holds only a part of the weights."""
    return isinstance(model, FSDPModule) or any(is_partitioned(parameter) for parameter in model.parameters())


def _copies(parameters: Iterable[tuple[str, torch.nn.Parameter]], here: bool) -> dict[str, torch.Tensor]:
    """Return whole weights in main memory, where `here` is true. Every process must call this."""
    copies = {}
    for name, parameter in parameters:
        with _whole(parameter):
            if here:
                copies[name] = parameter.detach().to("cpu", copy=True)
    return copies


def _whole(parameter: torch.nn.Parameter, writer: int | None = None) -> AbstractContextManager[Any]:
    """Inside, a parameter divided by ZeRO-3 is whole. Changes by the process `writer` are sent to all others."""
    if not is_partitioned(parameter):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], modifier_rank=writer)
    return gathered


def put_back(model: torch.nn.Module, weights: dict[str, Any]) -> None:
    """Restore weights that `trained_weights` copied. Every process must call this."""
    if isinstance(model, FSDPModule):
        for (
            module
        ) in model.modules():  # a validation leaves the outermost weights gathered, and those cannot be written
            if isinstance(module, FSDPModule):
                module.reshard()
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(model, weights, options=options)
        return
    with torch.no_grad():
        for name, parameter in _trained(model):
            with _whole(parameter, writer=0):
                if name in weights:  # with ZeRO-3, in the first process only
                    parameter.copy_(weights[name])
