"""The ladder's rungs that no setting of a user's reaches: each takes one lever away from, or adds one to, an engine."""

from __future__ import annotations

from collections.abc import Sequence

import trl.trainer.utils

import posttrain.shared_prompt


def head_on_completions() -> None:
    """TRL projects the positions of completion tokens alone, as it does on a GPU, and not every position."""
    trl.trainer.utils._use_triton = lambda device: True


def prompts_not_shared() -> None:
    """Flat rows in which each response brings a prompt of its own."""
    posttrain.shared_prompt._n_common = lambda sequences: 0


def pull(names: Sequence[str]) -> None:
    """Applies levers to this process, by the names of the functions above."""
    for name in names:
        globals()[name]()
