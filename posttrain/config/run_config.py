"""The whole config, and which of its settings go together."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from posttrain.config.checkpoints_section import CheckpointsSection
from posttrain.config.data_section import DataSection
from posttrain.config.evaluation_section import EvaluationSection, GateSection
from posttrain.config.explain import explain
from posttrain.config.model_section import ModelSection
from posttrain.config.section import Section
from posttrain.config.sweep_section import SweepSection, point_label
from posttrain.config.training_sections import DpoSection, SftSection


class TrackingSection(Section):
    """Where the curves go: the active stack's MLflow tracker, else MLFLOW_TRACKING_URI, else a local store."""

    experiment: str = Field("dpo_pipeline", min_length=1, description="MLflow experiment")


class RunConfig(Section):
    """Everything a run can be told."""

    name: str = Field("dpo", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the model in the registry")
    finetuning_type: Literal["sft", "dpo", "both"] = Field(
        "both", description="SFT alone, DPO alone from dpo.sft_checkpoint, or SFT and then DPO"
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="of initial weights, data order and dropout")
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    sft: SftSection = SftSection()
    dpo: DpoSection = DpoSection()
    evaluation: EvaluationSection = EvaluationSection()
    gate: GateSection = GateSection()
    checkpoints: CheckpointsSection = CheckpointsSection()
    tracking: TrackingSection = TrackingSection()
    sweep: SweepSection | None = Field(None, description="for sweep_pipeline: settings of dpo to be tried and compared")

    def without_sources(self) -> RunConfig:
        """Return the settings for steps that are given the instructions, SFT checkpoint and pair sets as artifacts.

        These artifacts have digests of their content, so where they come from must not be a part of what is cached.
        """
        sections = {
            "sft": self.sft.model_copy(update={"dataset": None}),
            "dpo": self.dpo.model_copy(update={"sft_checkpoint": None}),
            "evaluation": self.evaluation.model_copy(update={"sets": []}),
        }
        return self.model_copy(update=sections)

    def sweep_points(self) -> list[tuple[dict[str, Any], DpoSection]]:
        """Every combination of the grid's values, with the whole section that it makes of `dpo`; empty without a sweep.

        Raises:
            ValidationError: the values of a point exclude each other.
        """
        if self.sweep is None:
            return []
        grid: dict[str, list[Any]] = self.sweep.grid.model_dump()
        points = (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))
        return [(point, DpoSection.model_validate({**self.dpo.model_dump(), **point})) for point in points]

    @model_validator(mode="after")
    def every_point_of_the_sweep_can_be_trained(self) -> RunConfig:
        if self.sweep is None:
            return self
        if self.finetuning_type == "sft":
            raise ValueError("sweep is set but finetuning_type is sft, which trains no DPO: set it to both, or to dpo")
        if self.data.validation_size == 0:
            raise ValueError("sweep chooses on validation pairs, of which data.validation_size 0 leaves none: raise it")
        try:
            self.sweep_points()
        except ValidationError as error:
            point = {name: error.errors()[0]["input"][name] for name in self.sweep.grid.model_dump()}
            raise ValueError(
                f"sweep.grid at {point_label(point)}: {explain(error.errors()[0], DpoSection)[1]}"
            ) from error
        return self

    @model_validator(mode="after")
    def dpo_alone_has_a_start(self) -> RunConfig:
        if self.finetuning_type == "dpo" and not self.dpo.sft_checkpoint:
            raise ValueError("finetuning_type dpo needs dpo.sft_checkpoint: the SFT checkpoint that DPO starts from")
        if self.finetuning_type != "dpo" and self.dpo.sft_checkpoint:
            raise ValueError(
                f"dpo.sft_checkpoint is set but finetuning_type is {self.finetuning_type}, which trains its own: "
                "set finetuning_type to dpo, or drop dpo.sft_checkpoint"
            )
        return self

    @model_validator(mode="after")
    def sft_settings_are_used(self) -> RunConfig:
        if self.finetuning_type == "dpo" and self.sft != SftSection():
            raise ValueError("sft is set but finetuning_type is dpo, which runs no SFT: drop the section, or say both")
        return self

    @model_validator(mode="after")
    def a_base_in_4_bit_is_not_sharded(self) -> RunConfig:
        for name, section in (("sft", self.sft), ("dpo", self.dpo)):
            if section.sharding != "none" and self.model.method == "qlora":
                raise ValueError(
                    f"{name}.sharding {section.sharding} leaves the 4-bit base of model.method qlora whole in every process: set "
                    "model.method to lora, or sharding to none"
                )
        return self

    @model_validator(mode="after")
    def the_demo_is_whole(self) -> RunConfig:
        if self.model.base == "demo" and any(source.location != "demo" for source in self.data.sources):
            raise ValueError(
                "model.base is demo, a tiny model that only knows the demo's words: name a model for your own data"
            )
        return self
