"""How often a training in progress is saved."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from posttrain.config.sections.section import Section


class CheckpointsSection(Section):
    """Training checkpoints, from which an interrupted training resumes. They are kept in the artifact store until it ends."""

    interval_s: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="seconds between training checkpoints; lower loses less work on interruption and writes more. `auto`: every "
        "20 to 600 seconds, so that writing takes about 2% of the time",
    )
