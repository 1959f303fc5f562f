"""Several DPO trainings, and which is kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, create_model, field_validator, model_serializer, model_validator

from posttrain.config.section import Section
from posttrain.config.training_sections import DpoSection

# What a sweep shares between its points must not depend on the point.
NOT_SWEPT = {
    "max_length": "changes the tokens that the shared reference is scored on: run one sweep for each value",
    "max_prompt_length": "changes the tokens that the shared reference is scored on: run one sweep for each value",
    "sft_checkpoint": "is where all points start: set dpo.sft_checkpoint, and run one sweep for each start",
}


class _Grid(Section):
    @model_validator(mode="before")
    @classmethod
    def all_points_share_their_reference(cls, values: Any) -> Any:
        if isinstance(values, dict) and (bad := NOT_SWEPT.keys() & values.keys()):
            raise ValueError(f"{min(bad)} {NOT_SWEPT[min(bad)]}")
        return values

    @field_validator("*")
    @classmethod
    def no_value_stands_twice(cls, values: Any) -> Any:
        for i, value in enumerate(values or ()):
            if value in values[:i]:
                raise ValueError(f"{value!r} stands twice: each value is one point of the grid")
        return values

    @model_validator(mode="after")
    def something_is_swept(self) -> _Grid:
        if not self.model_dump():
            raise ValueError(
                "is empty: name at least one setting of dpo with its values, e.g. `beta: [0.05, 0.1, 0.5]`"
            )
        return self

    @model_serializer(mode="wrap")
    def only_what_is_swept(self, handler: Any) -> dict[str, Any]:
        return {name: values for name, values in handler(self).items() if values is not None}


if TYPE_CHECKING:
    Grid = _Grid
else:
    # Every setting of dpo as a list of values, each with the type and bounds that it has there.
    Grid = create_model(
        "Grid",
        __base__=_Grid,
        **{
            name: (
                Annotated[list[Annotated[field.annotation, *field.metadata, name]], Field(min_length=1)] | None,
                None,
            )
            for name, field in DpoSection.model_fields.items()
            if name not in NOT_SWEPT
        },
    )


class SweepSection(Section):
    """Several DPO trainings from one SFT checkpoint, and which of them is kept."""

    grid: Annotated[Grid, WithJsonSchema({"type": "object"})] = Field(
        description="settings of `dpo` and their values, e.g. `{beta: [0.05, 0.1], learning_rate: [1.0e-6, 5.0e-6]}`: "
        "every combination is trained"
    )
    choose_by: Literal["likelihood_accuracy", "implicit_accuracy"] = Field(
        "likelihood_accuracy",
        description="of the validation pairs; likelihood_accuracy is what the gate goes by on the test pairs",
    )


def point_label(values: dict[str, Any]) -> str:
    """A point of a sweep in words: `beta=0.1, learning_rate=5e-06`."""
    return ", ".join(f"{name}={value_label(value)}" for name, value in values.items())


def value_label(value: Any) -> str:
    """A value in words: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
