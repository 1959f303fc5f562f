"""Settings of verifier_pipeline."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.config.sections.training_sections import LEARNING_RATE, PairSection


class VerifierSection(PairSection):
    """A reward model, which scores answers (Cobbe et al. 2021, Ouyang et al. 2022). It is trained with TRL's RewardTrainer."""

    start: str = Field(
        "sft",
        min_length=1,
        description="model whose layers the verifier starts from; sft: the SFT model of this config, which is taken from the cache "
        "if dpo_pipeline has trained it; base: model.base; or a Hub model, a folder, a model version (`demo:production`) or a "
        "checkpoint version (`sft_checkpoint:3`)",
    )
    learning_rate: float = Field(1.0e-5, gt=0, le=1, description=LEARNING_RATE)
    loss: Literal["pairs", "absolute", "both"] = Field(
        "pairs",
        description="pairs: the chosen answer should score higher than the rejected one (Bradley-Terry); absolute: each chosen "
        "answer is right and each rejected one is wrong (binary cross-entropy), for graded solutions; both: the mean of the two",
    )
    center_rewards_coefficient: float | None = Field(
        None,
        gt=0,
        description="weight of the mean squared sum of the two scores, which keeps scores around 0; 0.01 is usual; only for the "
        "loss pairs, which leaves their zero open",
    )
    best_of: int = Field(
        16,
        ge=1,
        le=64,
        description="number of answers by the starting model to each of evaluation.generations.n test prompts, for the gain of "
        "best-of-n; they are drawn where answers can be graded (the demo's true reward); 1: none",
    )
    best_of_temperature: float = Field(
        1.0, gt=0, le=2, description="sampling temperature of these answers; higher: more different ones to choose from"
    )

    @property
    def for_training(self) -> VerifierSection:
        """These settings without those of the evaluation and the place of the start, which is given as an artifact."""
        return self.model_copy(update={"start": "sft", "best_of": 16, "best_of_temperature": 1.0})

    @model_validator(mode="after")
    def validate_centre(self) -> VerifierSection:
        if self.center_rewards_coefficient is not None and self.loss != "pairs":
            raise ValueError(
                f"center_rewards_coefficient is set but loss is {self.loss}, which fixes the zero of the scores: remove it, or set "
                "loss to pairs"
            )
        return self
