"""Estimates of what a config costs before it runs: steps, batch size and memory. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from posttrain.config import ModelSection, RunConfig, TrainSection
from posttrain.data.sources import count_rows
from posttrain.errors import UserError
from posttrain.models.memory import Shape, loaded_gib, read_shape
from posttrain.models.step_memory import StepSize, training_gib


@dataclass(frozen=True)
class StagePlan:
    """Estimated cost of one training stage."""

    effective_batch_size: int
    n_rows: int | None
    """Training rows before the data checks; None if they cannot be counted without a download."""
    n_steps: int | None
    memory_gib: float | None
    """None if the model is not on this machine."""


def plan(config: RunConfig) -> dict[str, StagePlan]:
    """Return the stages of a config by name."""
    shape = read_shape(config.model)
    n_pairs = _n_train_pairs(config)
    stages = {}
    for name, section in config.trainings.items():
        n_rows = n_pairs
        if name == "sft" and config.sft.datasets:
            counts = [count_rows(source) for source in config.sft.datasets]
            n_rows = None if None in counts else sum(count.get("train", 0) for count in counts if count)
        stages[name] = _stage(section, config.model, n_rows, shape)
    return stages


def test_pairs(config: RunConfig) -> int | None:
    """Return the number of test pairs before the data checks; None if they cannot be counted without a download."""
    total = 0.0
    for source in config.data.sources:
        if (counts := count_rows(source)) is None:
            return None
        total += counts.get("test", counts.get("train", 0) * config.data.test_size)
    return round(total)


def _n_train_pairs(config: RunConfig) -> int | None:
    total = 0
    for source in config.data.sources:
        counts = count_rows(source)
        if counts is None:
            return None
        if not sum(counts.values()):
            raise UserError(f"data.sources: {source.location} has no rows: add pairs, or remove the source")
        held_out = config.data.validation_size * ("validation" not in counts) + config.data.test_size * (
            "test" not in counts
        )
        total += round(counts.get("train", 0) * (1 - held_out))
    return total


def _stage(section: TrainSection, model: ModelSection, n_rows: int | None, shape: Shape | None) -> StagePlan:
    n_steps = section.max_steps
    if n_steps is None and n_rows is not None:
        n_steps = math.ceil(n_rows / section.effective_batch_size * section.epochs)
    memory = None
    if shape is not None:
        # The demo's model runs on a CPU and in fp32, others on a GPU.
        on_gpu = model.base != "demo"
        in_16_bit = model.precision in ("bf16", "fp16") or (model.precision == "auto" and on_gpu)
        n_tokens = section.batch_size * section.sequences_per_row * section.max_length
        size = StepSize(n_tokens, n_tokens, in_16_bit, on_gpu)
        memory = training_gib(
            section, model, shape, size, gradient_checkpointing=section.gradient_checkpointing is True
        )
        # Each process loads all weights before they are sharded.
        memory = max(memory, loaded_gib(model, shape, in_16_bit))
    return StagePlan(section.effective_batch_size, n_rows, n_steps, memory)
