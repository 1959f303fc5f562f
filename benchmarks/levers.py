"""The ladder's rungs that no setting of a user's reaches: each takes one lever away from, or adds one to, an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trl.trainer.utils

import posttrain.forward.attention
import posttrain.forward.flat
import posttrain.forward.flat_row
import posttrain.forward.lm_head
import posttrain.models.loading


def head_on_completions() -> None:
    """TRL projects the positions of completion tokens alone, as it does on a GPU, and not every position."""
    _replace(trl.trainer.utils, "_use_triton", lambda device: True)


def prompts_not_shared() -> None:
    """Flat rows in which each response brings a prompt of its own."""
    _replace(posttrain.forward.flat_row, "_n_common", lambda sequences: 0)


def bf16_as_it_comes() -> None:
    """In bf16, PEFT's casts to fp32 and back, and torch's attention kernel for it."""
    _replace(posttrain.models.loading, "leave_casts_to_autocast", lambda model: None)
    _replace(posttrain.forward.attention, "_attends_in_fp32", lambda query: False)


def trls_head() -> None:
    """TRL's LM head, which projects a second time in the backward pass."""
    _replace(posttrain.forward.flat, "plain_head_fields", lambda fused_forward: None)


def _replace(module: Any, name: str, value: Any) -> None:
    assert hasattr(module, name), f"{module.__name__} has no {name} any more: this rung would measure nothing"
    setattr(module, name, value)


def pull(names: Sequence[str]) -> None:
    """Applies levers to this process, by the names of the functions above."""
    for name in names:
        globals()[name]()
