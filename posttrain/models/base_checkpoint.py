"""A base model as a checkpoint, for training that starts from a model that this project did not train."""

from __future__ import annotations

from pathlib import Path

from posttrain.config import ModelSection
from posttrain.models.checkpoint import Base, Checkpoint, seal
from posttrain.models.loading import load_chat

IDENTITY = "base.json"
"""Digest of the base, so that two bases with the same tokenizer give two digests of the checkpoint."""


def base_checkpoint(base: Base, section: ModelSection, dest: Path) -> Checkpoint:
    """Return the base as a checkpoint: its tokenizer with the chat template of the settings, and no copy of its weights.

    Args:
        dest: empty folder for the files.
    """
    chat = load_chat(base, section)
    chat.tokenizer.save_pretrained(dest)
    (dest / IDENTITY).write_text(base.model_dump_json(include={"digest", "template_digest"}), encoding="utf-8")
    return seal(
        dest,
        [],
        stage="sft",
        kind="base",
        base=base,
        parent=None,
        template=chat.template,
        template_kwargs=dict(chat.settings.kwargs),
        template_date=chat.settings.day if chat.has_clock else None,
        stop_ids=chat.stop_ids,
        metrics={},
    )
