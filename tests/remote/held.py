"""`zenml pipeline run dpo_pipeline -c FILE`, in which DPO stops at two steps until the test lets it continue.

Usage: python held.py FOLDER FILE. At step 10 DPO waits for FOLDER/cut, at step 20 for FOLDER/restored.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

from zenml_cli import cli

from posttrain.tracking import tracked_stage
from posttrain.tracking.tracked_stage import TrackedStage

WAITS_FOR = {10: "cut", 20: "restored"}
"""By step. SFT has fewer steps."""

folder, file = map(Path, sys.argv[1:])
log_metrics = TrackedStage.log_metrics


def log_and_wait(stage: TrackedStage, values: Mapping[str, float], step: int = 0) -> None:
    """Record metrics, then wait if the step is one of those, and meanwhile send what has been recorded."""
    log_metrics(stage, values, step)
    if step in WAITS_FOR:
        (folder / f"at-{step}").touch()
        while not (folder / WAITS_FOR[step]).exists():
            stage.set_tags({})
            time.sleep(0.05)


if __name__ == "__main__":
    with patch.object(tracked_stage, "SEND_EVERY_S", 0.0), patch.object(TrackedStage, "log_metrics", log_and_wait):
        cli(["pipeline", "run", "dpo_pipeline", "-c", str(file)])
