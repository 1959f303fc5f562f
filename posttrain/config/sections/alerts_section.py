"""Settings of alerts."""

from __future__ import annotations

from pydantic import Field

from posttrain.config.sections.section import Section


class AlertsSection(Section):
    """Outcomes that are posted to the alerters of the stack, one line each. Without an alerter nothing is posted."""

    failed: bool = Field(True, description="post which step failed and why, after its last retry")
    promoted: bool = Field(False, description="post that a model is in production, and why")
    refused: bool = Field(False, description="post that a model is not promoted, and why")
    unchanged: bool = Field(False, description="post that a run had no new model to judge")
