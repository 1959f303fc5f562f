"""Preflight: finds before any training what would make it fail, or make its checkpoint differ from what was trained."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import psutil
import torch

from posttrain.config import ModelSection, RunConfig, TrainSection
from posttrain.config.sections.section import Section
from posttrain.errors import UserError
from posttrain.models.base_checks import base_problems
from posttrain.models.checkpoint import Base
from posttrain.models.memory import GIB, read_shape, weights_gib
from posttrain.models.precision import is_16_bit
from posttrain.training.trial import try_out

COST = {"batch_size", "processes", "sharding", "optimizer", "max_length", "gradient_checkpointing"}


class Needs(Section):
    """What a run asks of its base model and of the machine that trains it."""

    lengths: dict[str, int]
    """Numbers of tokens that the model must be able to read, by the name of the setting."""
    stages: dict[str, TrainSection]
    """The stages that are trained, reduced to what decides their cost."""
    reads_weights: bool
    """Whether the base's own weights are used. They are not if DPO starts from a checkpoint with all weights."""


def needs_of(config: RunConfig, *, reads_base: bool) -> Needs:
    """Return what a config asks of its base model.

    Args:
        reads_base: whether the base's own weights are used.
    """
    lengths: dict[str, int] = {}
    stages: dict[str, TrainSection] = {}
    for name, section in config.trainings.items():
        lengths[f"{name}.max_length"] = section.max_length
        stages[name] = section
    generations = config.evaluation.generations
    if generations.n:
        pairs = "verifier" if config.verifier else "dpo"
        name = f"{pairs}.max_prompt_length + evaluation.generations.max_new_tokens"
        lengths[name] = config.lengths.max_prompt_length + generations.max_new_tokens
    costs = {
        name: TrainSection(learning_rate=1.0, **section.model_dump(include=COST)) for name, section in stages.items()
    }
    return Needs(lengths=lengths, stages=costs, reads_weights=reads_base)


def preflight(base: Base, section: ModelSection, needs: Needs, *, trains_here: bool) -> str:
    """Check base, settings and machine, then train, save, reload and compare once on a few tokens.

    A model of up to 200 million weights is tried itself. A larger one is tried as a copy with few layers and random weights, and
    only the names and shapes of its own weights are read.

    Args:
        trains_here: whether this machine is the one that will train.

    Returns:
        What was checked, in one line.

    Raises:
        UserError: with everything that was found.
    """
    shape = read_shape(section)
    local = shape is not None
    found = base_problems(base, section, needs.lengths, weights=needs.reads_weights and (local or trains_here))
    if trains_here:
        found += machine_problems(section, needs)
    if found:
        raise UserError("\n".join(found))
    if not needs.reads_weights or not (local or trains_here):
        return f"{section.base}: settings, positions and tokenizer fit"
    return f"{section.base}: {try_out(base, section, dpo='dpo' in needs.stages)}"


def machine_problems(section: ModelSection, needs: Needs) -> list[str]:
    """Return what the settings need and this machine lacks, one message each."""
    return [*_gpu_problems(section, needs), *_memory_problems(section, needs)]


def _gpu_problems(section: ModelSection, needs: Needs) -> Iterator[str]:
    gpu, bitsandbytes = torch.cuda.is_available(), importlib.util.find_spec("bitsandbytes") is not None
    run = "run on a GPU with `pip install -e '.[gpu]'`"
    if section.method == "qlora" and not (gpu and bitsandbytes):
        yield (
            f"model.method: qlora needs a CUDA GPU and bitsandbytes, which this machine lacks: set it to lora, or {run}"
        )
    for name, stage in needs.stages.items():
        if stage.optimizer == "adamw_8bit" and not (gpu and bitsandbytes):
            yield (
                f"{name}.optimizer: adamw_8bit needs a CUDA GPU and bitsandbytes, which this machine lacks: set it to "
                f"adamw, or {run}"
            )
    if section.attention == "flash_attention_2" and not (gpu and importlib.util.find_spec("flash_attn")):
        yield (
            "model.attention: flash_attention_2 needs a CUDA GPU and the package flash-attn, which this machine lacks: set it to "
            "auto"
        )
    if section.precision == "fp16" and not gpu:
        yield "model.precision: fp16 needs a CUDA GPU: set it to fp32, or to bf16 on a CPU with AMX"
    if section.attention == "flex" and not gpu:
        yield "model.attention: flex has no backward pass on a CPU: set it to auto, or run on a GPU"


def _memory_problems(section: ModelSection, needs: Needs) -> Iterator[str]:
    if (shape := read_shape(section)) is None:
        return
    gpu = torch.cuda.is_available()
    total = (torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total) / GIB
    for name, stage in needs.stages.items():
        needed = weights_gib(stage, section, shape, is_16_bit(section) and section.method != "full")
        if needed > total:
            yield (
                f"{name}: weights, gradients and optimizer need about {needed:.1f} GiB per process, and this machine has "
                f"{total:.1f} GiB{' of GPU memory' if gpu else ''}: set model.method to lora or qlora, shard the weights "
                f"({name}.sharding), or use a larger machine"
            )
