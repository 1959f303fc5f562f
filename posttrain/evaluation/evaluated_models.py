"""The models of a run that are compared."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config import ModelSection
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
