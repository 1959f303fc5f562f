"""Positions of a model: how many it knows, and above which length a batch changes the result of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
SCALED_ROPE = frozenset({"yarn", "linear", "dynamic"})
BATCH_DEPENDENT_ROPE = frozenset({"longrope", "dynamic"})


def n_positions(config: Any) -> int | None:
    """Return the number of positions of a model, with its rope scaling; None for a model without a limit.

    Args:
        config: the model's or its text model's transformers config.
    """
    text = config.get_text_config()
    names = [name for name in POSITION_NAMES if isinstance(getattr(text, name, None), int)]
    if not names:
        return None
    declared = int(getattr(text, names[0]))
    scaled = [
        int(rope.get("original_max_position_embeddings", declared) * rope["factor"])
        for rope in _ropes(text)
        if _kind(rope) in SCALED_ROPE and rope.get("factor")
    ]
    return max([declared, *scaled])


def batch_dependent_above(config: Any) -> int | None:
    """Return the length above which a row's result depends on the other rows of its batch; None if it never does.

    Rope of the kinds `longrope` and `dynamic` chooses its frequencies for a whole batch, by the longest row in it.
    """
    text = config.get_text_config()
    limits = [
        int(rope.get("original_max_position_embeddings") or text.max_position_embeddings)
        for rope in _ropes(text)
        if _kind(rope) in BATCH_DEPENDENT_ROPE
    ]
    return min(limits) if limits else None


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _ropes(text: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rope settings of a config. Models with several kinds of layers have one for each kind."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(text, name, None)
        if isinstance(found, Mapping):
            yield from ([found] if _kind(found) != "default" or "rope_theta" in found else [])
            yield from (part for part in found.values() if isinstance(part, Mapping))
