"""`zenml pipeline run dpo_pipeline -c FILE`, in which DPO stops at two steps until the test lets it continue.

Usage: python held.py FOLDER FILE. At step 10 DPO waits for FOLDER/cut, at step 20 for FOLDER/restored.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from zenml_cli import cli

from posttrain.tracking import tracked_stage

WAITS_FOR = {10: "cut", 20: "restored"}
"""By step. SFT has fewer steps."""


def hold(folder: Path) -> None:
    """Make every stage wait after it has recorded the metrics of these steps; meanwhile it sends what it has recorded."""
    log_metrics = tracked_stage.TrackedStage.log_metrics

    def log_and_wait(stage: tracked_stage.TrackedStage, values: Mapping[str, float], step: int = 0) -> None:
        log_metrics(stage, values, step)
        if step in WAITS_FOR:
            (folder / f"at-{step}").touch()
            while not (folder / WAITS_FOR[step]).exists():
                stage.set_tags({})
                time.sleep(0.05)

    tracked_stage.SEND_EVERY_S = 0.0
    setattr(tracked_stage.TrackedStage, "log_metrics", log_and_wait)  # noqa: B010 (mypy allows no assignment to a method)


if __name__ == "__main__":
    hold(Path(sys.argv[1]))
    cli(["pipeline", "run", "dpo_pipeline", "-c", sys.argv[2]])
