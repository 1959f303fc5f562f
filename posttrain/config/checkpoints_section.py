"""How often a training in progress is saved."""

from __future__ import annotations

from pydantic import Field

from posttrain.config.section import Section


class CheckpointsSection(Section):
    """Training checkpoints, from which an interrupted training resumes. They are kept in the artifact store until it ends."""

    interval_s: float = Field(
        600.0,
        ge=0,
        description="seconds between training checkpoints; lower loses less work on interruption and writes more",
    )
