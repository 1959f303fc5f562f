"""Weights, gradients and optimizer state shared out among a stage's processes: what each setting tells the libraries.

Written for transformers 5.23, accelerate 1.15 and torch 2.13, and tried with two processes on a CPU (gloo).
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import Trainer

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
}
"""By the setting: keyword arguments of transformers' TrainingArguments."""


def sharding_arguments(sharding: str) -> dict[str, Any]:
    """What a trainer is told, which may write into it."""
    if sharding == "fsdp":
        # As `accelerate launch` does; on GPUs it puts gloo beside NCCL, for what lies in main memory.
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    return copy.deepcopy(ARGUMENTS[sharding])


def keep_precision(trainer: Trainer) -> None:
    """Leaves precision to autocast, as in one process: accelerate would round weights, gradients and log-probabilities to bf16."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


def gather(trainer: Trainer) -> None:
    """Makes a sharded model whole again, in the first process's main memory. Called by every process."""
    if not trainer.is_fsdp_enabled:
        return
    model: Any = trainer.model
    for name, tensor in trainer.accelerator.get_state_dict(model).items():  # of no items but in the first process
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
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}


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
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
