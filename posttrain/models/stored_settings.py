"""Settings of a model that training must change while it runs, and that its checkpoint must have as the base has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}  # fmt: skip
"""Settings of `GenerationConfig` that only sampling reads, and their neutral values."""
RANDOM = re.compile(r"drop(?!ped)|^jitter_noise$")
"""Names of settings that make a forward pass in training mode random. PhiMoE's `router_jitter_noise` is part of its routing."""


DROPOUTS = (
    torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.Dropout3d, torch.nn.AlphaDropout,
    torch.nn.FeatureAlphaDropout,
)  # fmt: skip


def drop_unused_sampling(model: PreTrainedModel) -> list[str]:
    """Remove sampling values from the generation settings of a model that does not sample, and return their names.

    They have no effect there, and transformers refuses to save them.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or settings.do_sample is True:
        return []
    unused = [name for name, neutral in SAMPLING.items() if getattr(settings, name, None) not in (None, neutral)]
    for name in unused:
        setattr(settings, name, None)
    return unused


def remove_randomness(model: Any) -> list[str]:
    """Set every dropout and router jitter of a model to 0, and return the names that were not 0.

    Many attention layers read a number and have no `nn.Dropout`, which is all that TRL's `disable_dropout` looks for. Some
    layers read the config instead, so it changes too: `StoredSettings` restores it.
    """
    found = set()
    for name, module in model.named_modules():
        if isinstance(module, DROPOUTS) and module.p > 0:
            module.p = 0.0
            found.add(name.rsplit(".", 1)[-1])
        for attribute, value in list(vars(module).items()):
            if _is_random(attribute, value):
                setattr(module, attribute, 0.0)
                found.add(attribute)
    text = model.config.get_text_config()
    for name in [name for name, value in vars(text).items() if _is_random(name, value)]:
        setattr(text, name, 0.0)
        found.add(name)
    return sorted(found)


ROUTER = ("output_router_logits", "router_aux_loss_coef", "num_experts", "num_experts_per_tok")
"""Settings of a mixture of experts that TRL and the forward pass change while they train."""


@dataclass(frozen=True)
class StoredSettings:
    """Settings of a model as they were loaded."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, model: Any) -> StoredSettings:
        """Return the settings of a loaded model that training may change."""
        settings = vars(model.config.get_text_config())
        return cls({name: value for name, value in settings.items() if name in ROUTER or _is_random(name, value)})

    def restore(self, model: Any) -> None:
        """Set them again, and remove those that training added."""
        text = model.config.get_text_config()
        for name, value in self.values.items():
            setattr(text, name, value)
        for name in ROUTER:
            if name not in self.values:
                vars(text).pop(name, None)


def _is_random(name: str, value: Any) -> bool:
    return isinstance(value, float) and value > 0 and RANDOM.search(name) is not None
