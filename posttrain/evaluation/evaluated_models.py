"""The models of a run that are compared."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config import LoraSection, ModelSection
from posttrain.errors import UserError
from posttrain.models.base import resolve_base
from posttrain.models.checkpoint import Base, Checkpoint


@dataclass(frozen=True)
class EvaluatedModels:
    """The base model, and the checkpoints to evaluate; those that do not exist are None."""

    base: Base
    section: ModelSection
    """How the models are loaded."""
    sft: Checkpoint | None = None
    dpo: Checkpoint | None = None
    champion: Checkpoint | None = None
    """The model in production. It may have another base, tokenizer and template."""

    @property
    def trained(self) -> dict[str, Checkpoint]:
        """The checkpoints of this run by stage, SFT first."""
        return {stage: found for stage, found in (("sft", self.sft), ("dpo", self.dpo)) if found}

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each model, by stage."""
        checkpoints = self.trained | ({"champion": self.champion} if self.champion else {})
        return {"base": self.base.digest, **{stage: found.digest for stage, found in checkpoints.items()}}


def section_of_champion(champion: Checkpoint, base: Base, model: ModelSection) -> ModelSection:
    """Return the settings that load a champion of an earlier run, whatever model this run trains.

    Raises:
        UserError: the champion is an adapter, and its base has changed.
    """
    own = champion.manifest.base
    if own.digest == base.digest and (champion.manifest.kind != "adapter" or model.method != "full"):
        return model.model_copy(update={"chat_template": None, "lora": LoraSection()})
    adapter = champion.manifest.kind == "adapter"
    method = "lora" if adapter and model.method == "full" else model.method
    section = model.model_copy(
        update={
            "base": own.id,
            "revision": own.revision,
            "method": method,
            "chat_template": None,
            "lora": LoraSection(),
        }
    )
    if adapter and (found := resolve_base(section)).digest != own.digest:
        raise UserError(
            f"the champion {champion.digest[:16]} is an adapter to {own.id} with digest {own.digest[:16]}, but that base has "
            f"changed (now {found.digest[:16]}), so the champion cannot be evaluated: restore the base, or take the champion "
            "out of production"
        )
    return section
