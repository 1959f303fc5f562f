"""Settings of a sweep over DPO trainings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, create_model, field_validator, model_serializer, model_validator

from posttrain.config.sections.section import Section
from posttrain.config.sections.training_sections import DpoSection

# All points share the tokens, the reference and the start, so the grid cannot change them.
NOT_SWEPT = {
    "max_length": "changes the tokens that the shared reference was scored on: run a separate sweep for each value",
    "max_prompt_length": "changes the tokens that the shared reference was scored on: run a separate sweep for each value",
    "start": "is shared by all points: set dpo.start and run a separate sweep for each start",
    "reference": "is shared by all points: set dpo.reference and run a separate sweep for each reference",
}


class _Grid(Section):
    @model_validator(mode="before")
    @classmethod
    def validate_names(cls, values: Any) -> Any:
        if isinstance(values, dict) and (bad := NOT_SWEPT.keys() & values.keys()):
            raise ValueError(f"{min(bad)} {NOT_SWEPT[min(bad)]}")
        return values

    @field_validator("*")
    @classmethod
    def validate_values(cls, values: Any) -> Any:
        for i, value in enumerate(values or ()):
            if value in values[:i]:
                raise ValueError(f"lists {value!r} twice: remove one")
        return values

    @model_validator(mode="after")
    def validate_not_empty(self) -> _Grid:
        if not self.model_dump():
            raise ValueError("is empty: list values for at least one setting of dpo, e.g. `beta: [0.05, 0.1, 0.5]`")
        return self

    @model_serializer(mode="wrap")
    def serialize_without_none(self, handler: Any) -> dict[str, Any]:
        return {name: values for name, values in handler(self).items() if values is not None}


if TYPE_CHECKING:
    Grid = _Grid
else:
    # Each setting of dpo as a list of values with the same type and bounds.
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
    """A grid of DPO trainings from one SFT checkpoint, and the metric that selects the best."""

    grid: Annotated[Grid, WithJsonSchema({"type": "object"})] = Field(
        description="settings of `dpo` and lists of values, e.g. `{beta: [0.05, 0.1], learning_rate: [1.0e-6, 5.0e-6]}`; "
        "each combination is trained"
    )
    choose_by: Literal["likelihood_accuracy", "implicit_accuracy"] = Field(
        "likelihood_accuracy",
        description="metric on the validation pairs that selects the best point; the gate uses likelihood_accuracy on the test "
        "pairs",
    )


def point_label(values: dict[str, Any]) -> str:
    """Return the values of a point as text: `beta=0.1, learning_rate=5e-06`."""
    return ", ".join(f"{name}={value_label(value)}" for name, value in values.items())


def value_label(value: Any) -> str:
    """Return a value as text: strings unchanged, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
