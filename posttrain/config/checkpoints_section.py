"""How often a training in progress is saved."""

from __future__ import annotations

from pydantic import Field

from posttrain.config.section import Section


class CheckpointsSection(Section):
    """What an interrupted training goes on from; lies in the artifact store until the training is done."""

    interval_s: float = Field(
        600.0, ge=0, description="seconds between two training checkpoints; lower: less is lost, more is written"
    )
