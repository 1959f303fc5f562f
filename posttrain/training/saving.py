"""Writing a trained model as a checkpoint, the same way in a training and in the trial before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel

from posttrain.chat.template import Chat
from posttrain.models.checkpoint import Base
from posttrain.models.stored_settings import StoredSettings


@dataclass(frozen=True)
class Trained:
    """A trained model and what its checkpoint needs besides the weights."""

    model: Any
    chat: Chat
    base: Base
    stored: StoredSettings
    """The settings of the model as it was loaded."""
    merges: bool = False
    """Whether an adapter becomes part of the weights: they are those of another checkpoint, on which this one must not depend."""


def save_trained(trained: Trained, folder: Path) -> Literal["full", "adapter"]:
    """Write weights and tokenizer, and return whether they are all weights or an adapter."""
    model, chat = trained.model, trained.chat
    folder.mkdir(parents=True, exist_ok=True)
    # Several named templates would go into a folder of their own, which a checkpoint may not contain.
    chat.tokenizer.save_pretrained(folder, save_jinja_files=isinstance(chat.tokenizer.chat_template, str))
    adapter = isinstance(model, PeftModel)
    if adapter and trained.merges:
        model, adapter = model.merge_and_unload(), False
    if not adapter:
        trained.stored.restore(model)
        if getattr(model, "generation_config", None) is not None:  # a verifier has none
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
