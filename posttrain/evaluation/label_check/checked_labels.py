"""The result of a label check."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from posttrain.evaluation.label_check.noise import LabelNoise


@dataclass(frozen=True)
class CheckedLabels:
    """Cross-fitted margins of the training pairs, the most suspicious first."""

    table: pa.Table
    """`id`, `fold`, `margin_nats` (implicit margin; below 0 if the model contradicts the label), `p_swapped`."""
    noise: LabelNoise | None
    """None if there are too few pairs."""
