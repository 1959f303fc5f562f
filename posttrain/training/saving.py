"""Writing a trained model as a checkpoint, the same way in a training and in the trial before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel

from posttrain.chat.template import Chat
from posttrain.models.checkpoint import Base, Checkpoint
from posttrain.models.stored_settings import StoredSettings


@dataclass(frozen=True)
class Trained:
    """A trained model and what its checkpoint needs besides the weights."""

    model: Any
    chat: Chat
    base: Base
    parent: Checkpoint | None
    """The checkpoint that training started from; None for the base."""
    stored: StoredSettings
    """The settings of the model as it was loaded."""


def save_trained(trained: Trained, folder: Path) -> Literal["full", "adapter"]:
    """Write weights and tokenizer, and return whether they are all weights or an adapter."""
    model, chat = trained.model, trained.chat
    folder.mkdir(parents=True, exist_ok=True)
    # Several named templates would go into a folder of their own, which a checkpoint may not contain.
    chat.tokenizer.save_pretrained(folder, save_jinja_files=isinstance(chat.tokenizer.chat_template, str))
    adapter = isinstance(model, PeftModel)
    if adapter and trained.parent is not None and trained.parent.manifest.kind == "full":
        # The adapter belongs to the parent's weights. Merged, the checkpoint depends on no other artifact.
        model, adapter = model.merge_and_unload(), False
    if not adapter:
        trained.stored.restore(model)
        model.generation_config.eos_token_id = chat.stop_ids
        model.generation_config.pad_token_id = chat.tokenizer.pad_token_id
        model.save_pretrained(folder)
        return "full"
    config = model.peft_config["default"]
    config.base_model_name_or_path = trained.base.id
    for name in ("target_modules", "exclude_modules"):
        if isinstance(getattr(config, name), set):
            # The order of a set differs between processes, and PEFT writes it: the same model would have several digests.
            setattr(config, name, sorted(getattr(config, name)))
    model.save_pretrained(folder, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)
    return "adapter"
