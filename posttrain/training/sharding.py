"""Weights, gradients and optimizer state shared out among a stage's processes: what each setting tells the libraries.

FSDP2 is torch's; ZeRO-2 and ZeRO-3 (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054) are DeepSpeed's.
Written for transformers 5.23, accelerate 1.15, torch 2.13 and DeepSpeed 0.19; tried with two and three processes on a CPU (gloo).
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

from posttrain.errors import UserError

if not torch.cuda.is_available():
    # Accelerate imports DeepSpeed wherever it is installed, which would wonder aloud.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of every weight, by torch's names."""
_WEIGHTS, _OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_STEP = "step"


def _zero(stage: int) -> dict[str, Any]:
    """DeepSpeed's settings; where auto stands, transformers puts the training's own, or what suits the model's width."""
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
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # one decoder layer at a time is whole
            "reshard_after_forward": True,  # false keeps them whole until the backward pass: less traffic, more memory
            "state_dict_type": "FULL_STATE_DICT",  # training checkpoints are of the whole model, in one file
        },
        # Gradients are shared out after each micro-batch; else every process would keep whole ones until the last.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    },
    "zero2": {"deepspeed": _zero(2)},
    "zero3": {"deepspeed": _zero(3)},
}
"""By the setting: keyword arguments of transformers' TrainingArguments."""


def sharding_arguments(sharding: str) -> dict[str, Any]:
    """What a trainer is told, which may write into it.

    Raises:
        UserError: DeepSpeed is not installed.
    """
    arguments = copy.deepcopy(ARGUMENTS[sharding])
    if sharding == "fsdp":
        # As `accelerate launch` does; on GPUs it puts gloo beside NCCL, for what lies in main memory.
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    if "deepspeed" in arguments:
        if not importlib.util.find_spec("deepspeed"):
            raise UserError(
                f"sharding: {sharding} needs DeepSpeed, which is not here: set it to fsdp, or `pip install -e '.[deepspeed]'`"
            )
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # Torch 2.13 has new names for what DeepSpeed calls in every step.
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
        arguments |= {"use_cpu": False, "bf16": False}  # see keep_precision
        if not torch.cuda.is_available():  # transformers would take it for the only process
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
            PartialState(backend="gloo", timeout=timedelta(minutes=30))
            arguments["accelerator_config"] = {"use_configured_state": True}
    return arguments


def is_sharded(trainer: Trainer) -> bool:
    """Whether processes keep shares of what is trained."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def keep_precision(trainer: Trainer, bf16: bool) -> None:
    """Leaves precision to autocast, as in one process: else weights, gradients and log-probabilities would be rounded to bf16."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if trainer.is_deepspeed_enabled and bf16:
        model: Any = trainer.model
        model.forward = torch.autocast(trainer.args.device.type, torch.bfloat16)(model.forward)


def save_shares(trainer: Trainer, folder: str) -> None:
    """Writes a sharded training's weights and optimizer state, whole, in the first process. Called by every process."""
    model: Any = trainer.model
    if trainer.is_fsdp_enabled:
        plugin, accelerator = trainer.accelerator.state.fsdp_plugin, trainer.accelerator
        try:
            save_fsdp_model(plugin, accelerator, model, folder, adapter_only=True)
        finally:  # which the others take part in also where the first has no room for the weights
            save_fsdp_optimizer(plugin, accelerator, trainer.optimizer, model, folder)
        return
    # DeepSpeed's own files are pickles that run code when they are read, and only as many processes can go on from them.
    first = trainer.is_world_process_zero()
    weights, optimizer = _copies(_trained(model), first), _optimizer_state(trainer, first)
    if first:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(weights, Path(folder) / _WEIGHTS)
        save_file(optimizer, Path(folder) / _OPTIMIZER)


@torch.no_grad()
def load_zero_shares(trainer: Trainer, folder: str) -> None:
    """Takes up what `save_shares` wrote for ZeRO, whatever the number of processes. Called by every process."""
    # Read one by one: each process needs a share of everything, and has no room for the whole.
    with safe_open(Path(folder) / _WEIGHTS, "pt") as weights, safe_open(Path(folder) / _OPTIMIZER, "pt") as optimizer:
        for own in _own_state(trainer):
            own[_STEP].copy_(optimizer.get_tensor(_STEP))
        for name, parameter in _trained(trainer.model):
            whole = weights.get_tensor(name)
            with _whole(parameter, writer=0):
                parameter.copy_(whole)
            _set_share(parameter, whole)
            for key in MOMENTS:
                _set_share(parameter, optimizer.get_tensor(f"{name}.{key}"), key)


def _set_share(parameter: Any, whole: torch.Tensor, key: str | None = None) -> None:
    """Puts this process's share of a weight, or of what AdamW keeps of it, in its place."""
    from deepspeed import utils

    if _by_zero3(parameter):
        size, world_size = parameter.ds_tensor.numel(), torch.distributed.get_world_size()
        padded = torch.nn.functional.pad(whole.flatten(), (0, size * world_size - whole.numel()))
        share = padded.view(world_size, size)[torch.distributed.get_rank()]
        if key:
            utils.safe_set_local_optimizer_state(parameter, share, key)
        else:
            utils.safe_set_local_fp32_param(parameter, share)
    elif key:
        utils.safe_set_full_optimizer_state(parameter, whole, key)
    else:
        utils.safe_set_full_fp32_param(parameter, whole)


def _optimizer_state(trainer: Trainer, here: bool) -> dict[str, torch.Tensor]:
    """ZeRO's, whole, in the main memory of the process that wants it here. Called by every process."""
    from deepspeed.utils import safe_get_full_optimizer_state

    state = {_STEP: _own_state(trainer)[0][_STEP].to("cpu", copy=True)}
    for name, parameter in _trained(trainer.model):
        for key in MOMENTS:
            whole = safe_get_full_optimizer_state(parameter, key)
            if here:
                state[f"{name}.{key}"] = whole.to("cpu", copy=True)
    return state


def _own_state(trainer: Trainer) -> list[dict[str, torch.Tensor]]:
    """What AdamW keeps of this process's share, group by group, and ZeRO told which part of it is of which weight."""
    sharded = trainer.model_wrapped.optimizer  # DeepSpeed's, around torch's
    by_zero2 = hasattr(sharded, "single_partition_of_fp32_groups")
    groups = sharded.single_partition_of_fp32_groups if by_zero2 else sharded.fp32_partitioned_groups_flat
    for flat in groups:
        if not sharded.optimizer.state[flat]:  # before the first step, in which AdamW would make it so
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            sharded.optimizer.state[flat] = {_STEP: torch.zeros((), device=flat.device), **moments}
    if by_zero2:
        # DeepSpeed does it once, when the first of several groups has been updated and the others have no state yet.
        sharded._hp_optimizer_states_linked = False
        sharded._lazy_init_hp_params_optimizer_state()
    return [sharded.optimizer.state[flat] for flat in groups]


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def gather(trainer: Trainer) -> None:
    """Makes a sharded model whole again, in the first process's main memory. Called by every process."""
    model: Any = trainer.model
    if trainer.is_fsdp_enabled:
        weights = trainer.accelerator.get_state_dict(model)  # empty but in the first process
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
    """A copy of what is trained, by name, in main memory: sharded, in that of the first process. Called by every process."""
    if isinstance(model, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        gathered: dict[str, Any] = get_model_state_dict(model, options=options)
        return gathered
    return _copies(_trained(model), here=not has_shares(model) or torch.distributed.get_rank() == 0)


def has_shares(model: torch.nn.Module) -> bool:
    """Whether each process has a share of the weights only."""
    return isinstance(model, FSDPModule) or any(_by_zero3(parameter) for parameter in model.parameters())


def _copies(parameters: Iterable[tuple[str, torch.nn.Parameter]], here: bool) -> dict[str, torch.Tensor]:
    """Whole weights in the main memory of each process that wants them here. Called by every process."""
    copies = {}
    for name, parameter in parameters:
        with _whole(parameter):
            if here:
                copies[name] = parameter.detach().to("cpu", copy=True)
    return copies


def _by_zero3(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def _whole(parameter: torch.nn.Parameter, writer: int | None = None) -> AbstractContextManager[Any]:
    """Inside, what ZeRO-3 has shared out is whole; what the writer makes of it, all have afterwards."""
    if not _by_zero3(parameter):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], modifier_rank=writer)
    return gathered


def put_back(model: torch.nn.Module, weights: dict[str, Any]) -> None:
    """Puts weights that `trained_weights` copied back into the model. Called by every process."""
    if isinstance(model, FSDPModule):
        for module in model.modules():  # a validation leaves the outermost weights whole, which cannot be written to
            if isinstance(module, FSDPModule):
                module.reshard()
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(model, weights, options=options)
        return
    with torch.no_grad():
        for name, parameter in _trained(model):
            with _whole(parameter, writer=0):
                if name in weights:  # of ZeRO-3, in the first process alone
                    parameter.copy_(weights[name])
