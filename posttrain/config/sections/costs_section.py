"""Settings of what a run costs."""

from __future__ import annotations

from pydantic import Field

from posttrain.config.sections.section import Section


class CostsSection(Section):
    """Price of computing, shown for each step and run. It changes no result."""

    gpu_hour: float | None = Field(None, ge=0, description="price of one GPU for an hour; null: show no money")
    currency: str = Field("USD", pattern=r"^\S{1,8}$", description="currency of gpu_hour, as it is shown")
