"""The whole config, and the rules that involve several sections."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from posttrain.config.explain import explain
from posttrain.config.sections.alerts_section import AlertsSection
from posttrain.config.sections.checkpoints_section import CheckpointsSection
from posttrain.config.sections.collect_section import CollectSection
from posttrain.config.sections.costs_section import CostsSection
from posttrain.config.sections.data_section import DataSection
from posttrain.config.sections.evaluation_section import EvaluationSection
from posttrain.config.sections.gate_section import GateSection
from posttrain.config.sections.model_section import ModelSection
from posttrain.config.sections.section import Section
from posttrain.config.sections.sweep_section import SweepSection, point_label
from posttrain.config.sections.training_sections import DpoSection, Lengths, SftSection, TrainSection
from posttrain.config.sections.verifier_section import VerifierSection


class TrackingSection(Section):
    """MLflow tracking. The server is the active stack's tracker, else MLFLOW_TRACKING_URI, else a local store."""

    experiment: str = Field("dpo_pipeline", min_length=1, description="name of the MLflow experiment")


class RunConfig(Section):
    """All settings of a run."""

    name: str = Field(
        "dpo",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="name of the model in ZenML's and MLflow's registries",
    )
    finetuning_type: Literal["sft", "dpo", "both"] = Field(
        "both", description="stages to train: SFT, DPO from dpo.start, or both"
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="random seed of initial weights, data order and dropout")
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    sft: SftSection = SftSection()
    dpo: DpoSection = DpoSection()
    evaluation: EvaluationSection = EvaluationSection()
    gate: GateSection = GateSection()
    checkpoints: CheckpointsSection = CheckpointsSection()
    tracking: TrackingSection = TrackingSection()
    costs: CostsSection = CostsSection()
    alerts: AlertsSection = AlertsSection()
    sweep: SweepSection | None = Field(None, description="settings of sweep_pipeline: DPO trainings to run and compare")
    collect: CollectSection | None = Field(
        None,
        description="settings of collect_pipeline: which models answer which prompts, who judges, how pairs are made",
    )
    verifier: VerifierSection | None = Field(
        None, description="settings of verifier_pipeline: the reward model that it trains instead of DPO"
    )

    @property
    def lengths(self) -> Lengths:
        """The token limits of the pairs."""
        return (self.verifier or self.dpo).lengths

    @property
    def trainings(self) -> dict[str, TrainSection]:
        """The trainings of a run in order, by name."""
        if self.verifier:
            return ({"sft": self.sft} if self.verifier.start == "sft" else {}) | {"verifier": self.verifier}
        sections: dict[str, TrainSection] = {"sft": self.sft, "dpo": self.dpo}
        return {name: section for name, section in sections.items() if self.finetuning_type in (name, "both")}

    @property
    def start(self) -> tuple[str, str] | None:
        """The setting that names the model to start from, and that name; None if the run trains SFT first."""
        if self.verifier:
            start = self.model.base if self.verifier.start == "base" else self.verifier.start
            return None if start == "sft" else ("verifier.start", start)
        return ("dpo.start", self.dpo.start) if self.dpo.start else None

    def without_sources(self) -> RunConfig:
        """Return the settings for steps that are given the instructions, start of DPO and pair sets as artifacts.

        These artifacts have digests of their content, so where they come from must not be a part of what is cached.
        """
        sections = {
            "sft": self.sft.model_copy(update={"dataset": None}),
            "dpo": self.dpo.model_copy(update={"start": None}),
            "evaluation": self.evaluation.model_copy(update={"sets": [], "benchmarks": []}),
        }
        return self.model_copy(update=sections)

    def sweep_points(self) -> list[tuple[dict[str, Any], DpoSection]]:
        """Return each combination of the grid's values and the `dpo` section with these values; empty without a sweep.

        Raises:
            ValidationError: the values of a point cannot be combined.
        """
        if self.sweep is None:
            return []
        grid: dict[str, list[Any]] = self.sweep.grid.model_dump()
        points = (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))
        return [(point, DpoSection.model_validate({**self.dpo.model_dump(), **point})) for point in points]

    @model_validator(mode="after")
    def validate_sweep(self) -> RunConfig:
        if self.sweep is None:
            return self
        if self.finetuning_type == "sft":
            raise ValueError(
                "sweep is set but finetuning_type is sft, which trains no DPO: set finetuning_type to both or dpo"
            )
        if self.data.validation_size == 0:
            raise ValueError("sweep compares points on validation pairs, and data.validation_size is 0: raise it")
        try:
            self.sweep_points()
        except ValidationError as error:
            point = {name: error.errors()[0]["input"][name] for name in self.sweep.grid.model_dump()}
            raise ValueError(
                f"sweep.grid at {point_label(point)}: {explain(error.errors()[0], DpoSection)[1]}"
            ) from error
        return self

    @model_validator(mode="after")
    def validate_start(self) -> RunConfig:
        if self.finetuning_type == "dpo" and not self.dpo.start:
            raise ValueError("finetuning_type dpo needs a model to start from: set dpo.start")
        if self.finetuning_type != "dpo" and self.dpo.start:
            raise ValueError(
                f"dpo.start is set but finetuning_type is {self.finetuning_type}, which starts DPO from the SFT model that it "
                "trains: set finetuning_type to dpo, or remove dpo.start"
            )
        return self

    @model_validator(mode="after")
    def validate_reference(self) -> RunConfig:
        if self.dpo.reference == "sft" and self.finetuning_type != "dpo":
            raise ValueError(
                f"dpo.reference is sft but finetuning_type is {self.finetuning_type}, in which DPO starts from the SFT model and "
                "has it as its reference anyway: remove dpo.reference, or set finetuning_type to dpo and dpo.start"
            )
        return self

    @model_validator(mode="after")
    def validate_sft(self) -> RunConfig:
        if self.finetuning_type == "dpo" and self.sft != SftSection():
            raise ValueError(
                "sft is set but finetuning_type is dpo, which runs no SFT: remove sft, or set finetuning_type to both"
            )
        return self

    @model_validator(mode="after")
    def validate_verifier(self) -> RunConfig:
        if self.verifier is None:
            return self
        for name, is_set in (
            ("dpo", self.dpo != DpoSection()),
            ("sweep", self.sweep is not None),
            ("finetuning_type", self.finetuning_type != "both"),
        ):
            if is_set:
                raise ValueError(
                    f"verifier and {name} are both set, but a config trains either DPO or a verifier: remove one of them"
                )
        if self.verifier.start != "sft" and self.sft != SftSection():
            raise ValueError(
                f"sft is set, but the verifier starts from {self.verifier.start} (verifier.start), so no SFT is run: remove "
                "sft, or set verifier.start to sft"
            )
        return self

    @model_validator(mode="after")
    def validate_sharding(self) -> RunConfig:
        for name, section in (("sft", self.sft), ("dpo", self.dpo), ("verifier", self.verifier)):
            if section and section.sharding != "none" and self.model.method == "qlora":
                raise ValueError(
                    f"{name}.sharding {section.sharding} does not shard the 4-bit base of model.method "
                    "qlora: set model.method to lora, or sharding to none"
                )
        return self

    @model_validator(mode="after")
    def validate_demo(self) -> RunConfig:
        starts_elsewhere = (self.start or ("", "demo"))[1] != "demo"  # model.base is then the base of that model
        if (
            self.model.base == "demo"
            and not starts_elsewhere
            and any(
                not source.location.startswith("artifact:") and source.location != "demo"
                for source in self.data.sources
            )
        ):
            raise ValueError(
                "model.base is demo, a tiny model whose vocabulary covers only the demo data: set model.base to another model"
            )
        return self
