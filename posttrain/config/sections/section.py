"""The base class of all config sections."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from posttrain.storage.addresses import has_user

Fraction = Annotated[float, Field(ge=0, le=0.5)]
Interval = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A group of settings. Unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def validate_addresses(cls, value: Any) -> Any:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and has_user(item):
                raise ValueError(
                    "contains a user or password, and settings are shown in MLflow and reports: set the credentials where the "
                    "program that uses the address looks for them, for S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )
        return value

    @field_validator("*", mode="before")
    @classmethod
    def validate_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool) and not _takes_yes_or_no(annotation):
                raise ValueError(
                    f"is {str(item).lower()}, but the setting does not take a boolean: set a value of another type"
                )
        return value


def _takes_yes_or_no(annotation: Any) -> bool:
    return annotation is bool or any(map(_takes_yes_or_no, get_args(annotation)))
