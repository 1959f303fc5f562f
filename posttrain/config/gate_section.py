"""Settings of the promotion gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.config.section import Section


class GateSection(Section):
    """Conditions for promoting a model to production."""

    min_gain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="lower bound of the accuracy gain's interval, at the level 1 - max_p_value, must exceed this; the gain is over the champion, or, "
        "if there is none, of DPO over SFT or of SFT over the base",
    )
    max_p_value: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="maximum p-value of the gain (exact sign-flip test by prompt, two-sided); lower is stricter",
    )
    max_slice_loss: float = Field(
        0.05,
        ge=0,
        le=1,
        description="maximum loss of accuracy in a slice; refused if a slice surely loses more, after Holm's correction for their number; 1: "
        "ignore slices",
    )
    min_slice_pairs: int = Field(20, ge=1, description="minimum number of pairs in a slice for max_slice_loss to apply")
    block_severity: Literal["warning", "error", "never"] = Field(
        "error", description="minimum severity of a finding that blocks promotion"
    )
