"""Private parts of DeepSpeed: which part of a weight and of its optimizer state a process holds.

Functions import DeepSpeed themselves, as it is an optional dependency and takes seconds to import.
"""

from __future__ import annotations

import os
from typing import Any

import torch


def choose_deepspeed_accelerator() -> None:
    """Tell DeepSpeed to use the CPU if there is no GPU. Call this before transformers loads or saves a model.

    Reason: transformers and accelerate import DeepSpeed wherever it is installed. Without the variable DeepSpeed then searches
    for an accelerator and prints warnings.
    Read against: DeepSpeed 0.19 (environment variable `DS_ACCELERATOR`).
    Remove when: transformers imports DeepSpeed only for a training that uses it.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def is_partitioned(parameter: Any) -> bool:
    """Return whether ZeRO-3 has divided the parameter among the processes.

    Reason: DeepSpeed marks its parameters by attributes alone.
    Read against: DeepSpeed 0.19 (`ds_id`, set by `deepspeed.zero.Init`).
    Remove when: DeepSpeed has a public function for it.
    """
    return hasattr(parameter, "ds_id")


def own_share(parameter: Any, whole: torch.Tensor) -> torch.Tensor:
    """Return this process's share of a tensor that has the shape of a parameter divided by ZeRO-3.

    Reason: `safe_set_local_fp32_param` takes the share, and nothing public cuts it out. The last share is padded with zeros.
    Read against: DeepSpeed 0.19 (`ds_tensor`, the flat share of a parameter).
    Remove when: DeepSpeed's `safe_set_full_fp32_param` and `safe_set_full_optimizer_state` work for ZeRO-3 before the first step.
    """
    size, world_size = parameter.ds_tensor.numel(), torch.distributed.get_world_size()
    padded = torch.nn.functional.pad(whole.flatten(), (0, size * world_size - whole.numel()))
    share: torch.Tensor = padded.view(world_size, size)[torch.distributed.get_rank()]
    return share


def own_optimizer_state(engine: Any, step: str, moments: tuple[str, ...]) -> list[dict[str, torch.Tensor]]:
    """Return the optimizer state of this process's share, one dict for each parameter group; zeros before the first step.

    Reason: DeepSpeed's own checkpoints are pickles and can only be loaded by the same number of processes.
    Read against: DeepSpeed 0.19 (`single_partition_of_fp32_groups` of ZeRO-2, `fp32_partitioned_groups_flat` of ZeRO-3;
    `_hp_optimizer_states_linked` and `_lazy_init_hp_params_optimizer_state` tell ZeRO-2 which part belongs to which weight,
    which it does by itself only once, when the first group has been updated and the others have no state yet).
    Remove when: DeepSpeed can save and load its optimizer state without pickles and for any number of processes.

    Args:
        engine: what DeepSpeed made of the model.
        step: name of the optimizer's step count.
        moments: names of its moments.
    """
    sharded = engine.optimizer
    by_zero2 = hasattr(sharded, "single_partition_of_fp32_groups")
    groups = sharded.single_partition_of_fp32_groups if by_zero2 else sharded.fp32_partitioned_groups_flat
    for flat in groups:
        if not sharded.optimizer.state[flat]:
            zeros = {key: torch.zeros_like(flat) for key in moments}
            sharded.optimizer.state[flat] = {step: torch.zeros((), device=flat.device), **zeros}
    if by_zero2:
        sharded._hp_optimizer_states_linked = False
        sharded._lazy_init_hp_params_optimizer_state()
    return [sharded.optimizer.state[flat] for flat in groups]
